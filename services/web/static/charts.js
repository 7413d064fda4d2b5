// Curves to be read under the pointer: draws the charts of a page again with uPlot, and goes on as updates come.
// Without this script the drawings that came with the page stay.
"use strict";

(() => {
  const holder = document.querySelector("[data-curves]");
  if (!holder || !window.uPlot) return;
  const HEIGHT = 210;
  const SECONDS = 10;
  const DASHES = [[], [7, 4], [2, 4], [9, 3, 2, 3], []];
  const plots = new Map();
  let last = 0;

  // light-dark() is no colour a canvas knows: the browser resolves it on an element.
  const resolve = (name) => {
    const probe = document.createElement("span");
    probe.style.color = `var(${name})`;
    document.body.append(probe);
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found;
  };

  const write = (chart, value) => {
    if (value === null || value === undefined) return "–";
    return chart.is_share ? `${Math.round(100 * value)} %` : Number(value.toPrecision(4)).toString();
  };

  const draw = (place, chart, numbers) => {
    const soft = resolve("--soft");
    const grid = { stroke: resolve("--line"), width: 1 };
    const font = `12px ${getComputedStyle(document.body).fontFamily}`;
    const width = place.clientWidth;
    const options = {
      width,
      height: HEIGHT,
      legend: { live: true },
      cursor: { y: false },
      scales: { x: { time: false }, y: chart.is_share ? { range: [0, 1] } : {} },
      axes: [
        { stroke: soft, font, size: 28, grid: { show: false }, ticks: { show: false }, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000] },
        { stroke: soft, font, grid, ticks: { show: false }, size: 56, values: (_, found) => found.map((v) => write(chart, v)) },
      ],
      series: [
        { label: "update" },
        ...chart.lines.map((line) => ({
          label: line.label,
          stroke: resolve(`--curve-${line.place}`),
          width: 2,
          dash: DASHES[line.place],
          points: { show: numbers.length < 3 },
          value: (_, v) => write(chart, v),
        })),
      ],
    };
    const label = place.querySelector("svg")?.getAttribute("aria-label") ?? place.dataset.label;
    place.dataset.label = label;
    place.replaceChildren();
    const plot = new uPlot(options, [numbers, ...chart.lines.map((line) => line.values)], place);
    plot.root.setAttribute("role", "img");
    plot.root.setAttribute("aria-label", label);
    return plot;
  };

  const show = ({ numbers, charts }) => {
    last = numbers[numbers.length - 1];
    for (const chart of charts) {
      const place = holder.querySelector(`[data-chart="${chart.name}"]`);
      if (!place) continue;
      plots.get(chart.name)?.plot.destroy();
      plots.set(chart.name, { plot: draw(place, chart, numbers), chart, numbers, place });
      const newest = holder.querySelector(`[data-newest="${chart.name}"]`);
      if (newest) newest.textContent = chart.newest;
    }
  };

  const redraw = () => {
    for (const [name, { plot, chart, numbers, place }] of plots) {
      plot.destroy();
      plots.set(name, { plot: draw(place, chart, numbers), chart, numbers, place });
    }
  };

  const ask = async () => {
    if (document.hidden) return;
    try {
      const answer = await fetch(`${holder.dataset.curves}?after=${last}`, { headers: { "HX-Request": "true" } });
      if (answer.status === 200) show(await answer.json());
    } catch {
      // the api is away for a moment: the curves stay as they are until the next turn
    }
  };

  let wait = 0;
  new ResizeObserver(() => {
    clearTimeout(wait);
    wait = setTimeout(() => {
      for (const { plot, place } of plots.values()) {
        if (place.clientWidth && place.clientWidth !== plot.width) plot.setSize({ width: place.clientWidth, height: HEIGHT });
      }
    }, 100);
  }).observe(holder);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  ask();
  setInterval(ask, SECONDS * 1000);
})();
