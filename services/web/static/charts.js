// Charts: the figures under the pointer, read from the table below each chart; and, where curves are replaced by newer
// ones, the tables that were open stay open. Without this script the drawings and their tables are all there.
"use strict";

(() => {
  const make = (name, text, kind = "") => {
    const made = document.createElement(name);
    made.textContent = text;
    made.className = kind;
    return made;
  };

  let shown = null;

  const clear = () => {
    shown?.querySelector(".hover")?.remove();
    shown?.querySelector(".hover-line")?.remove();
    shown = null;
  };

  const show = (plot, share) => {
    const table = document.getElementById(plot.dataset.table);
    const rows = [...table.tBodies[0].rows];
    const distance = (row) => Math.abs(Number(row.dataset.at) - 100 * share);
    const row = rows.reduce((best, one) => (distance(one) < distance(best) ? one : best));
    const names = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
    if (shown !== plot) clear();
    shown = plot;
    const line = plot.querySelector(".hover-line") ?? plot.appendChild(make("div", "", "hover-line"));
    line.style.left = `${row.dataset.at}%`;
    const box = plot.querySelector(".hover") ?? plot.appendChild(make("dl", "", "hover facts"));
    box.classList.toggle("left", Number(row.dataset.at) > 50);
    box.replaceChildren(...[...row.cells].flatMap((cell, place) => [make("dt", names[place]), make("dd", cell.textContent)]));
  };

  const follow = (event) => {
    const plot = event.target.closest?.("[data-table]");
    if (!plot) { clear(); return; }
    const box = plot.getBoundingClientRect();
    show(plot, (event.clientX - box.left) / box.width);
  };
  for (const kind of ["pointermove", "pointerdown"]) document.addEventListener(kind, follow);

  let open = [];
  document.addEventListener("htmx:beforeSwap", (event) => {
    open = [...event.target.querySelectorAll("details[open]")].map((one) => [one.id, one.querySelector(".scroll").scrollTop]);
  });
  document.addEventListener("htmx:afterSwap", () => {
    for (const [id, top] of open) {
      const details = document.getElementById(id);
      if (!details) continue;
      details.open = true;
      details.querySelector(".scroll").scrollTop = top;
    }
    open = [];
  });
})();
