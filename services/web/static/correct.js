/* The correction page: live difference, autosaved draft, remarks on parts of the answer, lease heartbeat, keys.
   The page's forms work without this script. Text only ever enters the page as text. */
(() => {
  "use strict";
  const SAVE_AFTER_MS = 700;
  const RETRY_MS = 5000;
  const SEND_MS = 20 * 1000; // a server that takes longer counts as unreachable
  const RENEW_MS = 60 * 1000;
  const IDLE_MS = 30 * 60 * 1000; // an untouched page stops holding its item
  const MIN_KEPT = 0.3; // as in services/web: with less in common, whole lines are marked, not words
  const CONTEXT = 2; // unchanged lines shown on either side of a change
  const find = (id) => document.getElementById(id);
  const tokenOf = (body) => JSON.parse(body.getAttribute("hx-headers"))["X-CSRF-Token"];
  let token = tokenOf(document.body);
  const say = (words) => { find("said").textContent = words; };
  document.documentElement.dataset.script = "yes";

  /* Invisible characters are shown as marks, as services/web does; the text itself does not change. */

  const HIDDEN = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]|\r(?!\n)/g;
  const DIRECTIONS = {
    "\u061c": "arabic letter mark", "\u200e": "left-to-right mark", "\u200f": "right-to-left mark",
    "\u202a": "left-to-right embedding", "\u202b": "right-to-left embedding", "\u202c": "pop directional formatting",
    "\u202d": "left-to-right override", "\u202e": "right-to-left override", "\u2066": "left-to-right isolate",
    "\u2067": "right-to-left isolate", "\u2068": "first strong isolate", "\u2069": "pop directional isolate",
  };
  const codeOf = (character) => `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
  const nameOf = (character) => DIRECTIONS[character] || "control character";

  function reveal(words) {
    const nodes = [];
    let seen = 0;
    for (const found of words.matchAll(HIDDEN)) {
      const mark = document.createElement("bdi");
      mark.className = "unshown";
      mark.dir = "ltr";
      mark.dataset.code = codeOf(found[0]);
      mark.title = `${nameOf(found[0])} (${codeOf(found[0])})`;
      mark.textContent = found[0];
      nodes.push(words.slice(seen, found.index), mark);
      seen = found.index + 1;
    }
    return [...nodes, words.slice(seen)].filter((node) => node !== "");
  }

  function tellHidden(words) {
    const counts = new Map();
    for (const [character] of words.matchAll(HIDDEN)) counts.set(character, (counts.get(character) || 0) + 1);
    const told = [...counts].map(([one, num]) => `${nameOf(one)} (${codeOf(one)}${num > 1 ? `, ${num} times` : ""})`);
    return told.length ? `The text contains characters that the field cannot show: ${told.join(", ")}. They are marked below.` : "";
  }

  /* The latest decision. */

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
        ? `The trainer will not use it for another ${seconds} s.`
        : `You can undo it for another ${Math.ceil((until - now) / 60000)} min, unless the trainer has taken it.`;
    };
    const clock = setInterval(tick, 1000);
    tick();
  }

  const desk = find("desk");

  /* Keys: single letters, outside of text fields and unless they are turned off. */

  const singleKeys = find("single-keys");
  const keysKept = "preceptor-single-keys";
  const read = (key) => { try { return localStorage.getItem(key); } catch { return null; } };
  const keep = (key, value) => { try { localStorage.setItem(key, value); return true; } catch { return false; /* a private window */ } };
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
  const decideWords = find("decide-words");
  const path = `/correct/${desk.dataset.id}`;
  const keptKey = `preceptor-draft-${desk.dataset.person}-${desk.dataset.id}`;
  const plain = (words) => words.replace(/\r\n?/g, "\n");
  const original = answer.textContent;
  const answered = plain(original);

  /* The draft: saved a moment after every change, kept in this browser while the server cannot be reached. */

  let spans = JSON.parse(spansField.value);
  let version = Number(versionField.value);
  let saved = JSON.stringify([plain(text.defaultValue), plain(comment.defaultValue), spans]); // typing may start before this runs
  let savedWords = version ? "Draft saved" : "No changes yet";
  let timer = 0;
  let sending = null;
  let stopped = false; // a conflict or a lost item: the person decides before more is sent
  let loggedOut = false; // saving waits for a login in another tab
  let isKept = true; // whether this browser could store unsaved text
  let trouble = ""; // why the last save failed
  let leaving = false;
  let lastTouch = Date.now();

  function snapshot() { return JSON.stringify([plain(text.value), plain(comment.value), spans]); }
  function isDirty() { return snapshot() !== saved; }

  function show(state, words) {
    if (stateLine.textContent === words) return;
    stateLine.dataset.state = state;
    stateLine.textContent = words;
  }

  const whereKept = () => (isKept ? "Your text is kept in this browser" : "Your text is only on this page: leave it open");

  function keepHere() { // while two drafts wait for a choice, as edited from neither: coming back asks again
    const from = find("conflict").hidden ? version : -1;
    isKept = keep(keptKey, JSON.stringify({ version: from, text: text.value, comment: comment.value, spans }));
  }

  function changed() {
    lastTouch = Date.now();
    leaving = false; // typing means the page is still here
    spansField.value = JSON.stringify(spans);
    if (!isDirty()) {
      forget(keptKey);
      if (!sending && !stopped) show("saved", savedWords);
      return;
    }
    keepHere();
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
      signal: AbortSignal.timeout(SEND_MS),
      ...options,
    });
  }

  /* Take up the session of a login in another tab, if it is the same person's: forms and calls carry its token. */
  async function takeUpLogin() {
    let body;
    try {
      const response = await fetch(path, { headers: { Accept: "text/html" }, signal: AbortSignal.timeout(SEND_MS) });
      body = new DOMParser().parseFromString(await response.text(), "text/html").body;
    } catch {
      return;
    }
    if (body.dataset.person !== desk.dataset.person) return;
    token = tokenOf(body);
    for (const field of document.querySelectorAll("input[name=csrf_token]")) field.value = token;
    loggedOut = false;
    find("logged-out").hidden = true;
  }

  async function save({ keepalive = false } = {}) {
    clearTimeout(timer);
    if (stopped || leaving) return;
    if (loggedOut) await takeUpLogin();
    if (!isDirty()) return;
    if (sending) { await sending; return save({ keepalive }); }
    sending = send(keepalive);
    try { await sending; } finally { sending = null; }
    if (isDirty() && !stopped && !trouble) timer = setTimeout(save, SAVE_AFTER_MS);
  }

  async function send(keepalive) {
    const sent = snapshot();
    const body = { version, text: plain(text.value), comment: plain(comment.value), spans };
    show("unsaved", "Saving…");
    let response;
    let said;
    try {
      response = await call("draft", body, { keepalive });
      said = await (response.ok ? response.json() : response.json().catch(() => ({ detail: "" })));
    } catch {
      trouble = "the server cannot be reached";
      show("offline", isKept ? "Offline: kept in this browser until the server is back" : "Offline: leave this page open until the server is back");
      timer = setTimeout(save, RETRY_MS);
      return;
    }
    if (response.ok) {
      version = said.version;
      versionField.value = String(version);
      saved = sent;
      trouble = "";
      savedWords = `Draft saved ${new Date(said.saved_at).toLocaleTimeString()}`;
      if (isDirty()) {
        show("unsaved", "Not saved yet");
      } else {
        forget(keptKey);
        show("saved", savedWords);
      }
      if (!said.held) lose("You can keep writing, but not submit.");
      return;
    }
    if (response.status === 409 && String(said.type).endsWith("draft-changed")) {
      stopForConflict();
    } else if (response.status === 409) {
      stopped = true;
      trouble = "this answer is no longer yours";
      show("failed", "Not saved: kept in this browser");
      lose(said.detail);
    } else if (response.status === 401 || response.status === 403) {
      tellLoggedOut();
      show("failed", "Not saved: you are no longer logged in");
    } else {
      trouble = said.detail || "the server could not save it";
      show("failed", said.detail ? `Not saved: ${said.detail}` : "Not saved; trying again");
      if (response.status >= 500 || response.status === 429) timer = setTimeout(save, RETRY_MS);
    }
  }

  function tellLoggedOut() {
    loggedOut = true;
    trouble = "you are no longer logged in; log in again in another tab, then try again";
    find("logged-out").hidden = false;
  }

  function stopForConflict() {
    stopped = true;
    trouble = "this draft was changed elsewhere; choose one above";
    show("failed", "Not saved: changed elsewhere");
    find("conflict").hidden = false;
  }

  function lose(words) {
    const notice = find("lease-lost");
    if (!notice.hidden) return;
    find("lease-lost-words").textContent = words ? `${words.charAt(0).toUpperCase()}${words.slice(1)}${/[.!]$/.test(words) ? "" : "."}` : "";
    notice.hidden = false;
    for (const id of ["submit", "fine"]) find(id).disabled = true;
  }

  /* The draft on the server; if there is none, the answer. Null, with a message, if it cannot be read. */
  async function askForTheirs() {
    const none = { text: answered, comment: "", spans: [], version: 0 };
    try {
      const response = await fetch(`${path}/draft`, { headers: { Accept: "application/json" }, signal: AbortSignal.timeout(SEND_MS) });
      if (response.ok || response.status === 404) return response.ok ? await response.json() : none;
      show("failed", "The other draft cannot be read: log in again in another tab, or try again");
    } catch {
      show("offline", "The other draft cannot be read: the server cannot be reached");
    }
    return null;
  }

  function settle() {
    find("conflict").hidden = true;
    if (find("theirs")) find("theirs").hidden = true;
    stopped = false;
    trouble = "";
    decideWords.textContent = "";
  }

  find("take-theirs").addEventListener("click", async () => {
    const theirs = await askForTheirs();
    if (!theirs) return;
    take(theirs);
    saved = snapshot();
    forget(keptKey);
    settle();
    show("saved", "Draft saved");
    text.focus();
  });

  find("keep-mine").addEventListener("click", async () => {
    const theirs = await askForTheirs();
    if (!theirs) return;
    version = theirs.version;
    settle();
    saved = "";
    keepHere();
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
  addEventListener("pageshow", () => { leaving = false; }); // back at a page that was sent
  document.addEventListener("visibilitychange", () => { if (document.hidden || loggedOut) save({ keepalive: document.hidden }); });
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
    if (response && (response.status === 401 || response.status === 403)) tellLoggedOut();
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

  const linesOf = (words) => (words ? words.split("\n") : []);
  const measure = (words) => words.replace(/\s+/g, "").length;

  /* The lines of one side: each a list of [text, whether it changed]. */
  function cut(parts, numLines) {
    const lines = Array.from({ length: numLines }, () => []);
    let at = 0;
    for (const [words, isChanged] of parts) {
      words.split("\n").forEach((piece, index) => {
        if (index) at += 1;
        if (piece && numLines) lines[at].push([piece, isChanged]);
      });
    }
    return lines;
  }

  /* Removed lines, then added ones, with the words that differ; the whole lines, where too little is common. */
  function markWords(was, now) {
    const [old, fresh] = [was.join("\n"), now.join("\n")];
    const parts = old && fresh ? Diff.diffWordsWithSpace(old, fresh, { timeout: 200 }) : null;
    const kept = (parts || []).reduce((sum, part) => (part.added || part.removed ? sum : sum + measure(part.value)), 0);
    const isAlike = parts && kept >= MIN_KEPT * Math.max(1, measure(old), measure(fresh));
    const side = (other, whole) => (isAlike ? parts.filter((part) => !part[other]).map((part) => [part.value, part.added || part.removed]) : [[whole, true]]);
    return [
      ...cut(side("added", old), was.length).map((line) => ({ kind: "delete", parts: line })),
      ...cut(side("removed", fresh), now.length).map((line) => ({ kind: "insert", parts: line })),
    ];
  }

  /* The difference by line, then by word, as services/web has it for pages without this script; null if it takes too long. */
  function compareLines(old, fresh) {
    const hunks = Diff.diffArrays(linesOf(old), linesOf(fresh), { timeout: 400 });
    if (!hunks) return null;
    const lines = [];
    for (let index = 0; index < hunks.length; index += 1) {
      const hunk = hunks[index];
      if (!hunk.added && !hunk.removed) {
        lines.push(...hunk.value.map((line) => ({ kind: "equal", parts: [[line, false]] })));
        continue;
      }
      const next = hunks[index + 1];
      const other = next && (next.added || next.removed) ? next.value : [];
      if (other.length) index += 1;
      lines.push(...(hunk.removed ? markWords(hunk.value, other) : markWords(other, hunk.value)));
    }
    return lines;
  }

  const hidesSomething = (line) => line.parts.some(([words]) => words.search(HIDDEN) >= 0);

  /* Without unchanged lines that are far from any change and hide nothing. */
  function leaveOut(lines) {
    const changes = lines.flatMap((line, index) => (line.kind === "equal" ? [] : [index]));
    const near = new Set(changes.flatMap((at) => Array.from({ length: 2 * CONTEXT + 1 }, (_, step) => at - CONTEXT + step)));
    const kept = [];
    let num = 0;
    const gap = () => { if (num && changes.length) kept.push({ kind: "gap", num }); num = 0; };
    lines.forEach((line, index) => {
      if (near.has(index) || hidesSomething(line)) { gap(); kept.push(line); } else num += 1;
    });
    gap();
    return kept;
  }

  function draw(line) {
    const box = document.createElement("div");
    box.className = `line ${line.kind}`;
    if (line.kind === "gap") { box.textContent = `${line.num} unchanged line${line.num === 1 ? "" : "s"}`; return box; }
    if (line.kind !== "equal") {
      const label = document.createElement("span");
      label.className = "unseen";
      label.textContent = line.kind === "delete" ? "Removed: " : "Added: ";
      box.append(label);
    }
    for (const [words, isChanged] of line.parts) {
      if (!isChanged) { box.append(...reveal(words)); continue; }
      const mark = document.createElement(line.kind === "delete" ? "del" : "ins");
      mark.append(...reveal(words));
      box.append(mark);
    }
    return box;
  }

  function compare() {
    const now = plain(text.value);
    const hidden = tellHidden(now);
    if (find("hidden-chars").textContent !== hidden) find("hidden-chars").textContent = hidden;
    const lines = compareLines(answered, now);
    if (!lines) {
      diffBox.textContent = "The texts differ too much to compare while you type.";
      find("summary").textContent = "";
      return;
    }
    diffBox.replaceChildren(...leaveOut(lines).map(draw));
    const count = (kind) => lines.filter((line) => line.kind === kind).flatMap((line) => line.parts)
      .reduce((sum, [words, isChanged]) => (isChanged ? sum + (words.match(/\S+/g) || []).length : sum), 0);
    const added = count("insert");
    find("summary").textContent = now === answered ? "none" : `${added} word${added === 1 ? "" : "s"} added, ${count("delete")} removed`;
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
      quote.append(...reveal(quoteOf(span).slice(0, 80)));
      const words = document.createElement("span");
      words.append(...reveal(span.text));
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
    const wanted = selectedTokens();
    if (!wanted && chosen) { remarkText.focus(); return; } // back to the words that Esc left standing
    if (wanted) chosen = wanted;
    if (!chosen) {
      say("Select words of the answer first.");
      find("answer-hint").textContent = "Select words of the answer first";
      answer.focus();
      return;
    }
    find("remark-quote").replaceChildren(...reveal(quoteOf({ ...chosen, text: "" }).slice(0, 200)));
    remarkEditor.hidden = false;
    remarkText.focus();
  }

  function closeRemark() { remarkEditor.hidden = true; remarkText.value = ""; chosen = null; answer.focus(); }

  function leaveRemark() {
    if (!remarkText.value.trim()) { closeRemark(); return; }
    answer.focus();
    say("Left the remark; its text is kept. Press c to continue, Add to add it.");
  }

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
    if (event.key === "Escape") { event.preventDefault(); event.stopPropagation(); leaveRemark(); }
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

  let warned = false;
  let deciding = false;
  form.addEventListener("submit", (event) => {
    const verdict = event.submitter ? event.submitter.value : "corrected";
    if (chosen && remarkText.value.trim()) addRemark(); // written but not added: submitted with it
    const same = plain(text.value) === answered;
    if (verdict === "corrected" && (same || !text.value.trim())) {
      event.preventDefault();
      decideWords.textContent = same ? "No changes: press “Fine as it is”, edit the answer, or skip it." : "The text is empty: skip it if there is no answer to give.";
      text.focus();
      return;
    }
    if (verdict === "fine" && !same && !warned) {
      event.preventDefault();
      warned = true;
      decideWords.textContent = "You edited the answer. Press again to discard the edit and confirm it is fine.";
      return;
    }
    if (deciding) { event.preventDefault(); return; }
    if (!isDirty() && !sending && !stopped && !loggedOut) { leaving = true; clearTimeout(timer); return; }
    event.preventDefault();
    decide(() => form.requestSubmit(event.submitter), decideWords, "Not submitted");
  });

  /* Go on once the server has every word, so that a refusal loses none. */
  async function decide(go, words, not) {
    deciding = true;
    words.textContent = "Saving first…";
    leaving = false;
    if (!stopped && !loggedOut) trouble = "";
    try {
      await save();
    } finally {
      deciding = false;
    }
    if (!isDirty() && !stopped && !loggedOut) { words.textContent = ""; go(); return; }
    words.textContent = `${not}: ${(trouble || "your latest changes are not saved yet").replace(/\.$/, "")}. ${whereKept()}.`;
    const notice = ["conflict", "logged-out", "lease-lost"].map(find).find((one) => !one.hidden);
    if (notice) notice.scrollIntoView({ block: "nearest" });
  }

  for (const other of document.querySelectorAll("form")) {
    if (other !== form && other.method === "post") {
      let told = false; // after one warning a person may leave: this browser keeps the text
      const words = other.querySelector("[data-refused]") || decideWords;
      text.addEventListener("input", () => { told = false; });
      other.addEventListener("submit", (event) => {
        if (deciding) { event.preventDefault(); return; }
        if (told || other.closest("#lease-lost") || (!isDirty() && !sending && !loggedOut)) { leaving = true; return; }
        event.preventDefault();
        const go = () => other.requestSubmit(event.submitter);
        decide(go, words, "Not done").then(() => {
          if (words.textContent) { told = true; words.textContent += " Press again to continue anyway."; }
        });
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

  /* Text this browser kept while the server was away. */

  const problem = find("problem");
  const kept = problem ? null : JSON.parse(read(keptKey) || "null");
  if (problem) { // what was sent and refused is on the page and nowhere else
    saved = "";
    if (find("theirs")) { stopForConflict(); keepHere(); } else changed();
  } else if (kept && Array.isArray(kept.spans)) {
    if (kept.version === version) {
      take({ ...kept, version });
      changed();
      say("Your unsaved text was restored.");
    } else if (JSON.stringify([plain(kept.text), plain(kept.comment), kept.spans]) !== saved) {
      const theirs = saved;
      take({ ...kept, version });
      saved = theirs;
      stopForConflict();
    } else {
      forget(keptKey);
    }
  } else if (isDirty()) {
    changed();
  }
  listSpans();
  compare();
  if (problem) problem.focus();
  else answer.focus({ preventScroll: true }); // not the editor: single keys work at once, and reading comes first
})();
