/* The correction page: live difference, autosaved draft, remarks on parts of the answer, the lease's heartbeat, keys.
   Everything here is an addition: the page's forms work without it. Text only ever enters the page as text. */
(() => {
  "use strict";
  const SAVE_AFTER_MS = 700;
  const RETRY_MS = 5000;
  const RENEW_MS = 60 * 1000;
  const IDLE_MS = 30 * 60 * 1000; // a page that nobody touched for so long does not hold an item
  const MAX_WORDS_CHARS = 60000; // longer texts are compared line by line
  const find = (id) => document.getElementById(id);
  const token = JSON.parse(document.body.getAttribute("hx-headers"))["X-CSRF-Token"];
  const say = (words) => { find("said").textContent = words; };
  document.documentElement.dataset.script = "yes";

  /* What was submitted last. */

  const undoBar = find("undo-bar");
  if (undoBar) {
    const held = Date.parse(undoBar.dataset.heldUntil);
    const until = Date.parse(undoBar.dataset.undoUntil);
    const words = find("undo-words");
    const tick = () => {
      const now = Date.now();
      if (now >= until) { undoBar.hidden = true; clearInterval(clock); return; }
      const seconds = Math.ceil((held - now) / 1000);
      words.textContent = seconds > 0
        ? `The trainer leaves it alone for another ${seconds} s.`
        : `It can be taken back for another ${Math.ceil((until - now) / 60000)} min, unless a trainer has it by now.`;
    };
    const clock = setInterval(tick, 1000);
    tick();
  }

  const desk = find("desk");

  /* Keys: single letters only where nobody types, and only if they are wanted. */

  const singleKeys = find("single-keys");
  const keysKept = "preceptor-single-keys";
  const read = (key) => { try { return localStorage.getItem(key); } catch { return null; } };
  const keep = (key, value) => { try { localStorage.setItem(key, value); } catch { /* a private window; the server has it */ } };
  const forget = (key) => { try { localStorage.removeItem(key); } catch { /* as above */ } };
  if (singleKeys) {
    singleKeys.checked = read(keysKept) !== "off";
    singleKeys.addEventListener("change", () => keep(keysKept, singleKeys.checked ? "on" : "off"));
  }
  const isTyping = (target) => target.closest("textarea, select, [contenteditable], input:not([type=radio], [type=checkbox])");
  const keys = {};
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (isTyping(event.target) || document.querySelector("dialog[open]")) return;
    if (singleKeys && !singleKeys.checked) return;
    const act = keys[event.key];
    if (act) { event.preventDefault(); act(); }
  });
  const press = (id) => { const button = find(id); if (button && !button.disabled) button.click(); };
  keys.u = () => press("undo");
  keys.n = () => press("next");
  if (!desk) return;

  const form = find("work");
  const text = find("text");
  const comment = find("comment");
  const answer = find("answer");
  const versionField = find("version");
  const spansField = find("spans");
  const stateLine = find("state");
  const path = `/correct/${desk.dataset.id}`;
  const keptKey = `preceptor-draft-${desk.dataset.person}-${desk.dataset.id}`;
  const plain = (words) => words.replace(/\r\n?/g, "\n");
  const original = answer.textContent;
  const answered = plain(original);

  /* The draft: saved a moment after every change, kept in this browser while the server cannot be reached. */

  let spans = JSON.parse(spansField.value);
  let version = Number(versionField.value);
  let saved = snapshot();
  let savedWords = version ? "Draft saved" : "Nothing changed yet";
  let timer = 0;
  let sending = null;
  let stopped = false; // a conflict or a lost item: the person decides before anything more is sent
  let leaving = false;
  let lastTouch = Date.now();

  function snapshot() { return JSON.stringify([plain(text.value), plain(comment.value), spans]); }
  function isDirty() { return snapshot() !== saved; }

  function show(state, words) {
    if (stateLine.textContent === words) return;
    stateLine.dataset.state = state;
    stateLine.textContent = words;
  }

  function changed() {
    lastTouch = Date.now();
    spansField.value = JSON.stringify(spans);
    if (!isDirty()) { if (!sending && !stopped) show("saved", savedWords); return; }
    keep(keptKey, JSON.stringify({ version, text: text.value, comment: comment.value, spans }));
    if (stopped) return;
    show("unsaved", "Not saved yet");
    clearTimeout(timer);
    timer = setTimeout(save, SAVE_AFTER_MS);
  }

  async function call(name, body, options = {}) {
    return fetch(`${path}/${name}`, {
      method: "POST",
      headers: { "Content-Type": "application/json", Accept: "application/json", "X-CSRF-Token": token },
      body: JSON.stringify(body),
      ...options,
    });
  }

  async function save({ keepalive = false } = {}) {
    clearTimeout(timer);
    if (stopped || leaving || !isDirty()) return;
    if (sending) { await sending; return save({ keepalive }); }
    const sent = snapshot();
    const body = { version, text: plain(text.value), comment: plain(comment.value), spans };
    show("unsaved", "Saving…");
    sending = send(sent, body, keepalive);
    await sending;
    sending = null;
    if (isDirty() && !stopped) timer = setTimeout(save, SAVE_AFTER_MS);
  }

  async function send(sent, body, keepalive) {
    let response;
    try {
      response = await call("draft", body, { keepalive });
    } catch {
      show("offline", "Offline: kept in this browser, sent when it is back");
      timer = setTimeout(save, RETRY_MS);
      return;
    }
    if (response.ok) {
      const draft = await response.json();
      version = draft.version;
      versionField.value = String(version);
      saved = sent;
      if (!isDirty()) forget(keptKey);
      savedWords = `Draft saved ${new Date(draft.saved_at).toLocaleTimeString()}`;
      show("saved", savedWords);
      if (!draft.held) lose("You can go on writing, but not submit it.");
      return;
    }
    const problem = await response.json().catch(() => ({ detail: "" }));
    if (response.status === 409 && String(problem.type).endsWith("draft-changed")) {
      stopped = true;
      show("failed", "Not saved: changed elsewhere");
      find("conflict").hidden = false;
    } else if (response.status === 409) {
      stopped = true;
      show("failed", "Not saved: kept in this browser");
      lose(problem.detail);
    } else if (response.status === 401 || response.status === 403) {
      stopped = true;
      show("failed", "Not saved: please log in again in another tab, then reload this page");
    } else {
      show("failed", problem.detail ? `Not saved: ${problem.detail}` : "Not saved; trying again");
      if (response.status >= 500 || response.status === 429) timer = setTimeout(save, RETRY_MS);
    }
  }

  function lose(words) {
    const notice = find("lease-lost");
    if (!notice.hidden) return;
    find("lease-lost-words").textContent = words ? `${words.charAt(0).toUpperCase()}${words.slice(1)}${/[.!]$/.test(words) ? "" : "."}` : "";
    notice.hidden = false;
    for (const id of ["submit", "fine"]) find(id).disabled = true;
  }

  find("take-theirs").addEventListener("click", async () => {
    const response = await fetch(`${path}/draft`, { headers: { Accept: "application/json" } });
    take(response.ok ? await response.json() : { text: answered, comment: "", spans: [], version: 0 });
    saved = snapshot();
    forget(keptKey);
    find("conflict").hidden = true;
    stopped = false;
    show("saved", "Draft saved");
    text.focus();
  });

  find("keep-mine").addEventListener("click", async () => {
    const response = await fetch(`${path}/draft`, { headers: { Accept: "application/json" } });
    version = response.ok ? (await response.json()).version : 0;
    find("conflict").hidden = true;
    stopped = false;
    saved = "";
    await save();
    text.focus();
  });

  function take(draft) {
    text.value = draft.text;
    comment.value = draft.comment;
    spans = draft.spans;
    version = draft.version;
    versionField.value = String(version);
    spansField.value = JSON.stringify(spans);
    listSpans();
    compare();
  }

  text.addEventListener("input", () => { changed(); compareSoon(); });
  comment.addEventListener("input", changed);
  find("reset").addEventListener("click", () => { text.value = answered; changed(); compare(); text.focus(); });
  addEventListener("online", () => save());
  document.addEventListener("visibilitychange", () => { if (document.hidden) save({ keepalive: true }); });
  addEventListener("pagehide", () => {
    if (leaving) return;
    if (isDirty()) { save({ keepalive: true }); return; }
    if (version) return;
    call("leave", {}, { keepalive: true }).catch(() => {});
  });

  /* The lease. */

  async function renew() {
    if (stopped || Date.now() - lastTouch > IDLE_MS) return;
    const response = await call("renew", {}).catch(() => null);
    if (response && response.status === 409) {
      const problem = await response.json().catch(() => ({ detail: "" }));
      lose(problem.detail);
    }
  }
  setInterval(renew, RENEW_MS);
  addEventListener("pageshow", renew);
  for (const event of ["pointerdown", "keydown", "scroll"]) addEventListener(event, () => { lastTouch = Date.now(); }, { passive: true });

  /* The difference, as it is typed. */

  const diffBox = find("diff");
  let compareTimer = 0;
  function compareSoon() { clearTimeout(compareTimer); compareTimer = setTimeout(compare, 80); }

  function compare() {
    const now = plain(text.value);
    const long = answered.length + now.length > MAX_WORDS_CHARS;
    const compareWith = long ? Diff.diffLines : Diff.diffWordsWithSpace;
    const parts = compareWith(answered, now, { timeout: 400 });
    if (!parts) {
      diffBox.textContent = "The texts differ too much to compare while you type.";
      find("summary").textContent = "";
      return;
    }
    const nodes = parts.map((part) => {
      if (!part.added && !part.removed) return document.createTextNode(part.value);
      const node = document.createElement(part.added ? "ins" : "del");
      node.textContent = part.value;
      return node;
    });
    diffBox.replaceChildren(...nodes);
    const count = (which) => parts.filter((part) => part[which]).reduce((sum, part) => sum + (part.value.match(/\S+/g) || []).length, 0);
    const added = count("added");
    const removed = count("removed");
    find("summary").textContent = now === answered ? "None: it is the answer as it was" : `${added} word${added === 1 ? "" : "s"} added, ${removed} left out`;
  }

  /* Remarks on parts of the answer: selected characters become whole tokens. */

  const ends = answer.dataset.ends ? answer.dataset.ends.split(",").map(Number) : null;
  const begin = (index) => (index ? ends[index - 1] : 0);

  function offsetIn(node, offset) {
    const range = document.createRange();
    range.setStart(answer, 0);
    range.setEnd(node, offset);
    return range.toString().length;
  }

  function selectedTokens() {
    const selection = getSelection();
    if (!ends || !selection.rangeCount || selection.isCollapsed) return null;
    const range = selection.getRangeAt(0);
    if (!answer.contains(range.commonAncestorContainer)) return null;
    const from = offsetIn(range.startContainer, range.startOffset);
    const to = offsetIn(range.endContainer, range.endOffset);
    const inside = ends.map((_, i) => i).filter((i) => begin(i) < ends[i] && begin(i) < to && ends[i] > from);
    if (!inside.length) return null;
    let first = inside[0];
    while (first > 0 && begin(first - 1) === ends[first - 1]) first -= 1; // the other tokens of its first character
    return { start: first, end: inside[inside.length - 1] + 1 };
  }

  function rangeOf(from, to) {
    const range = document.createRange();
    const walker = document.createTreeWalker(answer, NodeFilter.SHOW_TEXT);
    let seen = 0;
    let begun = false;
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
      const next = seen + node.data.length;
      if (!begun && from < next) { range.setStart(node, from - seen); begun = true; }
      if (begun && to <= next) { range.setEnd(node, to - seen); return range; }
      seen = next;
    }
    return null;
  }

  const quoteOf = (span) => original.slice(begin(span.start), ends[span.end - 1]);

  function listSpans() {
    if (!ends) return;
    find("own-remarks").replaceChildren(...spans.map((span, index) => {
      const line = document.createElement("li");
      const quote = document.createElement("q");
      quote.className = "mono";
      quote.textContent = quoteOf(span).slice(0, 80);
      const words = document.createElement("span");
      words.textContent = span.text;
      const remove = document.createElement("button");
      remove.type = "button";
      remove.className = "button quiet small";
      remove.textContent = "Remove";
      remove.setAttribute("aria-label", `Remove the remark on ${quote.textContent}`);
      remove.addEventListener("click", () => {
        spans = spans.filter((_, other) => other !== index);
        listSpans();
        changed();
        comment.focus();
      });
      line.append(quote, words, remove);
      return line;
    }));
    if (globalThis.Highlight && CSS.highlights) {
      const ranges = spans.map((span) => rangeOf(begin(span.start), ends[span.end - 1])).filter(Boolean);
      CSS.highlights.set("own-remark", new Highlight(...ranges));
    }
  }

  const remarkEditor = find("remark-editor");
  const remarkText = find("remark-text");
  let chosen = null;

  function openRemark() {
    chosen = selectedTokens();
    if (!chosen) {
      say("Select words of the answer first.");
      find("answer-hint").textContent = "Select words of the answer first";
      answer.focus();
      return;
    }
    find("remark-quote").textContent = quoteOf({ ...chosen, text: "" }).slice(0, 200);
    remarkEditor.hidden = false;
    remarkText.value = "";
    remarkText.focus();
  }

  function closeRemark() { remarkEditor.hidden = true; chosen = null; answer.focus(); }

  function addRemark() {
    const words = remarkText.value.trim();
    if (!words || !chosen) { remarkText.focus(); return; }
    spans = [...spans, { ...chosen, text: words }];
    listSpans();
    changed();
    say("Remark added.");
    closeRemark();
  }

  find("remark-button").addEventListener("mousedown", (event) => event.preventDefault()); // keeps the selection
  find("remark-button").addEventListener("click", openRemark);
  find("remark-add").addEventListener("click", addRemark);
  find("remark-cancel").addEventListener("click", closeRemark);
  remarkText.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.isComposing && !event.ctrlKey && !event.metaKey) { event.preventDefault(); addRemark(); }
    if (event.key === "Escape") { event.preventDefault(); event.stopPropagation(); closeRemark(); }
  });

  /* Selecting without a mouse: arrows walk over the tokens, shift stretches the selection. */

  let anchor = -1;
  let head = -1;
  answer.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 }[event.key];
    if (!step || !ends || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const visible = ends.length - 1;
    head = Math.max(0, Math.min(visible, head < 0 ? 0 : head + step));
    while (head > 0 && begin(head) === ends[head]) head -= 1;
    if (!event.shiftKey || anchor < 0) anchor = head;
    const [first, last] = [Math.min(anchor, head), Math.max(anchor, head)];
    const range = rangeOf(begin(first), ends[last]);
    if (!range) return;
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    say(range.toString());
  });

  /* Deciding. */

  const decideWords = find("decide-words");
  let warned = false;
  form.addEventListener("submit", (event) => {
    const verdict = event.submitter ? event.submitter.value : "corrected";
    const same = plain(text.value) === answered;
    if (verdict === "corrected" && (same || !text.value.trim())) {
      event.preventDefault();
      decideWords.textContent = same ? "You changed nothing: say “fine as it is”, edit it, or skip it." : "The text is empty: skip it if there is no answer to give.";
      text.focus();
      return;
    }
    if (verdict === "fine" && !same && !warned) {
      event.preventDefault();
      warned = true;
      decideWords.textContent = "You edited the answer. Once more to say it was fine and drop your edit.";
      return;
    }
    leaving = true;
    clearTimeout(timer);
    forget(keptKey);
    if (sending) { // the draft under way must not come after the decision
      event.preventDefault();
      sending.finally(() => { versionField.value = String(version); form.requestSubmit(event.submitter); });
      sending = null;
    }
  });
  for (const other of document.querySelectorAll("form")) {
    if (other !== form && other.method === "post") {
      other.addEventListener("submit", async (event) => {
        if (!isDirty() || stopped || leaving) { leaving = true; return; }
        event.preventDefault();
        await save();
        leaving = true;
        other.requestSubmit(event.submitter);
      });
    }
  }
  text.addEventListener("input", () => { warned = false; decideWords.textContent = ""; });

  const skip = find("skip");
  const help = find("help");
  find("help-button").addEventListener("click", () => help.showModal());
  keys["?"] = () => help.showModal();
  keys.e = () => text.focus();
  keys.a = () => answer.focus();
  keys.c = openRemark;
  keys.f = () => press("fine");
  keys.s = () => { skip.open = true; skip.querySelector("input[type=radio]:checked").focus(); };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.isComposing && !document.querySelector("dialog[open]")) {
      event.preventDefault();
      press("submit");
    }
    if (event.key === "Escape" && isTyping(event.target) && !event.defaultPrevented) {
      event.preventDefault();
      answer.focus();
      say("Left the text field; single keys work.");
    }
  });

  /* What this browser kept while the server was away. */

  const kept = JSON.parse(read(keptKey) || "null");
  if (kept && Array.isArray(kept.spans)) {
    if (kept.version === version) {
      take({ ...kept, version });
      changed();
      say("What was not sent yet is here again.");
    } else if (JSON.stringify([plain(kept.text), plain(kept.comment), kept.spans]) !== saved) {
      const theirs = saved;
      take({ ...kept, version });
      saved = theirs;
      stopped = true;
      find("conflict").hidden = false;
      show("failed", "Not saved: changed elsewhere");
    } else {
      forget(keptKey);
    }
  }
  listSpans();
  compare();
  const problem = find("problem");
  if (problem) problem.focus();
  else answer.focus({ preventScroll: true }); // not the editor: single keys work at once, and reading comes first
})();
