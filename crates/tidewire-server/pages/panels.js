/**
 * The panels of the page. Each is a function that takes its elements from the document once and returns
 * the few verbs that the page calls; none of them knows the socket or the server.
 *
 * Whatever came from another person or from the database is written with `textContent` alone. Colours are
 * checked before they reach a style. Nothing is stored.
 */

const find = (id) => document.getElementById(id);

/** An element with classes and text. */
function element(tag, className = "", content = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (content) made.textContent = content;
  return made;
}

const NAMED_COLORS = new Map([
  ["sand", "#c2974a"],
  ["foam", "#3f9fa6"],
  ["kelp", "#6b8e3d"],
]);

/** A drawing of one path; `path` is ours, never from outside. */
function drawing(viewBox, path) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", viewBox);
  svg.setAttribute("aria-hidden", "true");
  const shape = document.createElementNS(space, "path");
  shape.setAttribute("d", path);
  svg.append(shape);
  return svg;
}

/** A button that shows a drawing and has a name. */
function iconButton(className, name, path) {
  const button = element("button", className);
  button.type = "button";
  button.title = name;
  button.setAttribute("aria-label", name);
  button.append(drawing("0 0 24 24", path));
  return button;
}

/** A colour as other people may send it: `#rrggbb` or one of our names; anything else becomes grey. */
export function safeColor(color) {
  if (typeof color !== "string") return "#8a979c";
  return /^#[0-9a-f]{6}$/i.test(color) ? color : (NAMED_COLORS.get(color) ?? "#8a979c");
}

/** A short text from somebody else: a string, trimmed to `limit` characters. */
export function shortText(value, limit) {
  return (typeof value === "string" ? value : "").trim().slice(0, limit);
}

function formatMs(ms) {
  if (ms < 10) return ms.toFixed(1);
  return String(Math.round(ms));
}

function quantile(sorted, share) {
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))];
}

/** The connection pill in the header. */
export function connectionPanel() {
  const pill = find("connection");
  const label = find("connection-text");
  return {
    show(state, words) {
      pill.dataset.state = state;
      label.textContent = words;
    },
    tenant(name) {
      find("tenant").textContent = name;
    },
  };
}

/** Latency readings with a sparkline of the last 60. */
export function latencyPanel({ onMeasure }) {
  const KEPT = 60;
  const meter = (name) => {
    const readings = [];
    const answers = [];
    const output = find(`latency-${name}`);
    const note = find(`latency-${name}-note`);
    const spark = find(`spark-${name}`);
    return {
      /** How long the request's own answer took: what the change is to be compared with. */
      answered(ms) {
        answers.push(ms);
        if (answers.length > KEPT) answers.shift();
      },
      add(ms) {
        readings.push(ms);
        if (readings.length > KEPT) readings.shift();
        // The large number is the median: one slow reading is in the line below and in the sparkline.
        const sorted = [...readings].sort((a, b) => a - b);
        const median = quantile(sorted, 0.5);
        output.textContent = formatMs(median);
        output.dataset.ms = String(median);
        if (readings.length > 2) {
          const answer = quantile([...answers].sort((a, b) => a - b), 0.5);
          const first = answer === undefined ? `last ${formatMs(ms)}` : `answer ${formatMs(answer)}`;
          note.textContent = `${first} · p95 ${formatMs(quantile(sorted, 0.95))} · ${readings.length} readings`;
        }
        drawSpark(spark, readings);
      },
    };
  };
  const button = find("measure");
  button.addEventListener("click", async () => {
    button.disabled = true;
    button.textContent = "Measuring…";
    try {
      await onMeasure();
    } finally {
      button.disabled = false;
      button.textContent = "Measure 20 writes";
    }
  });
  return { write: meter("write"), broadcast: meter("broadcast"), hideWrites: () => (find("meter-write").hidden = button.hidden = true) };
}

function drawSpark(svg, readings) {
  const [width, height, margin] = [240, 44, 4];
  const top = Math.max(...readings, 1);
  const step = width / (Math.max(readings.length, 24) - 1); // a few readings do not fill the width
  const first = width - (readings.length - 1) * step;
  const points = readings.map((ms, index) => {
    const x = first + index * step;
    const y = height - margin - (ms / top) * (height - 2 * margin);
    return `${x.toFixed(1)} ${y.toFixed(1)}`;
  });
  const line = points.length === 1 ? `M0 ${points[0].split(" ")[1]}L${points[0]}` : `M${points.join("L")}`;
  const start = points.length === 1 ? 0 : first;
  svg.querySelector(".spark-line").setAttribute("d", line);
  svg.querySelector(".spark-area").setAttribute("d", `${line}L${width} ${height}L${start.toFixed(1)} ${height}Z`);
}

/** Rows of the shared table. The caller owns the truth; this panel shows it and asks for writes. */
export function notesPanel({ onInsert, onUpdate, onDelete }) {
  const list = find("notes");
  const shown = new Map();
  const input = find("note-input");

  find("note-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const body = input.value.trim();
    if (!body) return;
    input.value = "";
    onInsert(body);
  });

  function make(row) {
    const item = element("li", "note");
    item.dataset.id = String(row.id);
    const done = element("input", "note-done");
    done.type = "checkbox";
    const main = element("div", "note-main");
    const body = element("p", "note-body");
    const by = element("p", "note-by");
    const author = element("span", "note-author");
    const when = element("time", "note-when");
    by.append(author, when);
    main.append(body, by);
    const edit = iconButton("note-action note-edit", "Edit", "M4 20h4L19 9l-4-4L4 16zM13 7l4 4");
    const remove = iconButton("note-action note-delete", "Delete", "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13M10.5 11v5M13.5 11v5");
    item.append(done, main, edit, remove);

    done.addEventListener("change", () => onUpdate(row.id, { done: done.checked }));
    remove.addEventListener("click", () => onDelete(row.id));
    edit.addEventListener("click", () => startEdit());
    body.addEventListener("dblclick", () => startEdit());

    function startEdit() {
      if (item.classList.contains("editing")) return;
      item.classList.add("editing");
      const before = entry.row.body ?? "";
      const field = element("input", "note-field");
      field.maxLength = 280;
      field.value = before;
      field.setAttribute("aria-label", "Text of the row");
      main.prepend(field);
      field.focus();
      const finish = (keep) => {
        if (!item.classList.contains("editing")) return;
        item.classList.remove("editing");
        const changed = field.value.trim();
        field.remove();
        // Compared with what was there when editing began: an untouched field never undoes somebody's write.
        if (keep && changed && changed !== before) onUpdate(row.id, { body: changed });
      };
      field.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== "Escape") return;
        event.preventDefault(); // else the button that gets the focus is pressed by the same key
        finish(event.key === "Enter");
        edit.focus();
      });
      field.addEventListener("blur", () => finish(item.isConnected));
    }

    const entry = { item, row, done, body, author, when };
    return entry;
  }

  function fill(entry, row) {
    entry.row = row;
    entry.item.classList.toggle("is-done", row.done === true);
    entry.item.style.setProperty("--who", safeColor(row.color));
    entry.done.checked = row.done === true;
    entry.done.setAttribute("aria-label", row.done === true ? "Mark as open" : "Mark as done");
    entry.body.textContent = row.body ?? "";
    entry.author.textContent = shortText(row.author, 40) || "somebody";
    const at = new Date(row.updated_at);
    if (!Number.isNaN(at.getTime())) {
      entry.when.dateTime = at.toISOString();
      entry.when.textContent = at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
    }
  }

  function count() {
    find("notes-count").textContent = String(shown.size);
    find("notes-empty").hidden = shown.size > 0 || !find("notes-loading").hidden;
  }

  function flash(item, name) {
    item.classList.remove("fresh", "touched");
    void item.offsetWidth; // restarts the animation
    item.classList.add(name);
  }

  return {
    upsert(row, { animate = true } = {}) {
      let entry = shown.get(row.id);
      const isNew = !entry;
      if (isNew) {
        entry = make(row);
        shown.set(row.id, entry);
        // Newest first: the row goes before the first one with a smaller id.
        const before = [...list.children].find((other) => Number(other.dataset.id) < Number(row.id));
        list.insertBefore(entry.item, before ?? null);
      }
      fill(entry, row);
      if (animate) flash(entry.item, isNew ? "fresh" : "touched");
      count();
    },
    remove(id) {
      const entry = shown.get(id);
      if (!entry) return;
      shown.delete(id);
      entry.item.remove();
      count();
    },
    keepOnly(ids) {
      for (const id of [...shown.keys()]) if (!ids.has(id)) this.remove(id);
    },
    live(isLive) {
      find("notes-loading").hidden = isLive;
      list.setAttribute("aria-busy", String(!isLive));
      count();
    },
    problem(words) {
      const line = find("notes-error");
      line.textContent = words ?? "";
      line.hidden = !words;
    },
  };
}

/** Who is online. */
export function peoplePanel({ onRename }) {
  const list = find("people");
  const input = find("name-input");
  find("name-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = shortText(input.value, 32);
    if (name) onRename(name);
    input.blur();
  });
  const entries = new Map();
  return {
    me(name) {
      input.value = name;
    },
    /** `people`: array of `{ key, name, color, isMe }`, in the order to show. */
    show(people) {
      const keys = new Set(people.map((person) => person.key));
      for (const [key, item] of entries) {
        if (!keys.has(key)) {
          item.remove();
          entries.delete(key);
        }
      }
      for (const person of people) {
        let item = entries.get(person.key);
        if (!item) {
          item = element("li", "person");
          item.append(element("span", "avatar"), element("span", "person-name"), element("span", "person-me", "you"));
          item.dataset.key = person.key;
          entries.set(person.key, item);
        }
        item.classList.toggle("is-me", person.isMe);
        item.style.setProperty("--who", safeColor(person.color));
        item.querySelector(".avatar").textContent = initials(person.name);
        item.querySelector(".person-name").textContent = person.name;
        list.append(item);
      }
      find("people-count").textContent = String(people.length);
    },
  };
}

function initials(name) {
  const words = name.split(/\s+/).filter(Boolean);
  const letters = words.length > 1 ? [words[0], words[words.length - 1]] : words;
  return letters.map((word) => [...word][0].toUpperCase()).join("");
}

/** The shared area with pointers, pings and reactions, and the chat below it. */
export function broadcastPanel({ onMove, onPing, onReaction, onSay }) {
  const MESSAGES_KEPT = 60;
  const POINTER_LIFE_MS = 8_000;
  const stage = find("stage");
  const pointers = new Map();
  const chat = find("chat");

  const place = (event) => {
    const box = stage.getBoundingClientRect();
    return { x: clamp((event.clientX - box.left) / box.width), y: clamp((event.clientY - box.top) / box.height) };
  };
  stage.addEventListener("pointermove", (event) => onMove(place(event)));
  stage.addEventListener("pointerdown", (event) => onPing(place(event)));
  for (const button of find("reactions").querySelectorAll("button")) {
    button.addEventListener("click", () => onReaction(button.dataset.emoji));
  }
  find("chat-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const input = find("chat-input");
    const words = input.value.trim();
    if (!words) return;
    input.value = "";
    onSay(words);
  });

  function put(item, x, y) {
    item.style.left = `${clamp(x) * 100}%`;
    item.style.top = `${clamp(y) * 100}%`;
    stage.append(item);
    find("stage-hint").hidden = true;
  }

  function passing(item, x, y) {
    item.addEventListener("animationend", () => item.remove());
    put(item, x, y);
  }

  return {
    pointer(key, { x, y, name, color }) {
      let pointer = pointers.get(key);
      if (!pointer) {
        const item = element("div", "pointer");
        item.append(arrow(), element("span", "pointer-name"));
        pointer = { item, timer: 0 };
        pointers.set(key, pointer);
      }
      clearTimeout(pointer.timer);
      pointer.timer = setTimeout(() => this.forget(key), POINTER_LIFE_MS);
      pointer.item.style.setProperty("--who", safeColor(color));
      pointer.item.querySelector(".pointer-name").textContent = name;
      pointer.item.style.left = `${clamp(x) * 100}%`;
      pointer.item.style.top = `${clamp(y) * 100}%`;
      if (!pointer.item.isConnected) put(pointer.item, x, y);
    },
    forget(key) {
      const pointer = pointers.get(key);
      if (!pointer) return;
      clearTimeout(pointer.timer);
      pointer.item.remove();
      pointers.delete(key);
    },
    ping({ x, y, color }) {
      const item = element("div", "ping");
      item.style.setProperty("--who", safeColor(color));
      passing(item, x, y);
    },
    reaction({ emoji, x }) {
      const item = element("div", "floating", shortText(emoji, 8));
      passing(item, x, 0.92);
    },
    say({ name, color, words, isMe }) {
      const item = element("li", "message");
      item.style.setProperty("--who", safeColor(color));
      item.classList.toggle("is-me", isMe);
      item.append(element("span", "message-name", name), element("span", "message-words", words));
      chat.append(item);
      while (chat.children.length > MESSAGES_KEPT) chat.firstChild.remove();
      chat.scrollTop = chat.scrollHeight;
    },
  };
}

function clamp(share) {
  return Math.min(1, Math.max(0, Number.isFinite(share) ? share : 0));
}

function arrow() {
  return drawing("0 0 16 16", "M2 1.5 13.5 7.4 8.3 8.9 6 14z");
}

/** The event log: raw frames, newest first. */
export function wirePanel() {
  const KEPT = 200;
  const SHOWN_CHARACTERS = 4_000;
  const list = find("wire");
  const pause = find("wire-pause");
  const noise = find("wire-noise");
  const totals = { in: 0, out: 0, bytes: 0 };
  let waiting = [];
  let isPaused = false;
  let isScheduled = false;

  pause.addEventListener("click", () => {
    isPaused = !isPaused;
    pause.textContent = isPaused ? "Resume" : "Pause";
    pause.setAttribute("aria-pressed", String(isPaused));
  });
  find("wire-clear").addEventListener("click", () => list.replaceChildren());

  function row({ direction, label, summary: gist, words, bytes, at }) {
    const item = element("li", `frame frame-${direction}`);
    const details = element("details");
    const summary = element("summary");
    summary.append(
      element("span", "frame-way", direction === "in" ? "←" : "→"),
      element("span", "frame-label", label),
      element("span", "frame-text", gist.slice(0, 240)),
      element("span", "frame-size", formatBytes(bytes)),
    );
    const whole = words.length > SHOWN_CHARACTERS ? `${words.slice(0, SHOWN_CHARACTERS)}…` : words;
    details.append(summary, element("pre", "frame-raw", whole), element("p", "frame-at", at));
    item.append(details);
    return item;
  }

  function flush() {
    isScheduled = false;
    const fresh = waiting.map(row);
    waiting = [];
    list.prepend(...fresh.reverse());
    while (list.children.length > KEPT) list.lastChild.remove();
    find("wire-in").textContent = totals.in.toLocaleString();
    find("wire-out").textContent = totals.out.toLocaleString();
    find("wire-bytes").textContent = formatBytes(totals.bytes);
  }

  return {
    frame({ direction, label, summary, words, bytes, isNoise }) {
      totals[direction] += 1;
      totals.bytes += bytes;
      if (!isPaused && (!isNoise || noise.checked)) {
        waiting.push({ direction, label, summary, words, bytes, at: new Date().toISOString() });
        if (waiting.length > KEPT) waiting.shift();
      }
      // One paint for many frames: a burst must not cost a layout each.
      if (!isScheduled) {
        isScheduled = true;
        requestAnimationFrame(flush);
      }
    },
  };
}

function formatBytes(bytes) {
  if (bytes < 1_000) return `${bytes} B`;
  if (bytes < 1_000_000) return `${(bytes / 1_000).toFixed(1)} kB`;
  return `${(bytes / 1_000_000).toFixed(1)} MB`;
}

/** Light or dark: what the system says until the button is used. */
export function themeButton() {
  const root = document.documentElement;
  find("theme").addEventListener("click", () => {
    const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = isDark ? "light" : "dark";
  });
}

/** The form of a server without demonstration: a key, kept in memory, and a channel name. */
export function connectPanel({ onConnect }) {
  find("connect-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const key = find("connect-key");
    const credential = key.value.trim();
    key.value = "";
    onConnect(credential, find("connect-topic").value.trim());
  });
  return { show: () => (find("connect").hidden = false) };
}

/** The sentence that explains the demonstration. */
export function introPanel() {
  return { show: () => (find("intro").hidden = false) };
}
