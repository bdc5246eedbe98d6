"use strict";
// The dashboard's page: no framework, no build. What the server says is put into the page as text, never as HTML.
const $ = (id) => document.getElementById(id);
const HOUR = 3600, KEPT_LINES = 2000, KEPT_POINTS = 720, FEW_APPS = 8, DRAW_LOG = 250, LONGEST_LINE = 256 * 1024, SILENT = 20;
const GLYPHS = {running: "●", ready: "●", starting: "◐", reloading: "◐", stopping: "◐", draining: "◐", killed: "◐",
                held: "◐", opening: "◐", degraded: "▲", unhealthy: "▲", failed: "✖", stopped: "○"};
const CHARTS = [
  {key: "cpu", title: "CPU", lines: [["cpu", "cpu"]], least: 10, show: percent},
  {key: "mem", title: "Memory", lines: [["memory", "memory"]], least: 1, show: size},
  {key: "rate", title: "Requests/s", lines: [["rate", "rate"]], least: 1, show: rate, http: true},
  {key: "latency", title: "Latency", lines: [["p50", "p50"], ["p99", "p99"]], least: 0.001, show: time, http: true},
  {key: "restarts", title: "Restarts", lines: [["restarts", "restarts"]], least: 1, show: (v) => v === null ? "–" : String(v), sum: true},
];
const FIELDS = ["t", "cpu", "memory", "rate", "p50", "p99", "errors", "restarts", "ready"];
const state = {token: "", doc: null, away: "", ahead: 0, app: "", points: [], events: [], lines: [], unfinished: new Map(), logAbort: null, busy: new Set(), failures: 0};

// ---- words -----------------------------------------------------------------------------------------
function known(v) { return v !== null && v !== undefined; }
function percent(v) { return known(v) ? v.toFixed(1) + "%" : "–"; }
function rate(v) { return !known(v) ? "–" : v > 0.05 && v < 9.95 ? v.toFixed(1) : Math.round(v).toLocaleString("en"); }
function time(v) { return !known(v) ? "–" : v < 0.0001 ? Math.round(v * 1e6) + " µs" : v < 0.01 ? (v * 1e3).toFixed(1) + " ms" : v < 1 ? Math.round(v * 1e3) + " ms" : v.toFixed(1) + " s"; }
function share(v) { return !known(v) ? "–" : v === 0 ? "0%" : (v * 100).toFixed(v < 0.1 ? 2 : 0) + "%"; }
function size(v) {
  if (!known(v)) return "–";
  let i = 0;
  for (v = Number(v); v >= 1000 && i < 4; i++) v /= 1024;
  return (i > 2 && v < 10 ? v.toFixed(1) : Math.round(v)) + " " + ["B", "KB", "MB", "GB", "TB"][i];
}
// each page divided among those who share it, where that is known
function memory(of) { return known(of.pss_bytes) ? of.pss_bytes : of.rss_bytes; }
function span(s) {
  if (!known(s)) return "–";
  s = Math.floor(s);
  const units = [[86400, "d"], [3600, "h"], [60, "m"], [1, "s"]];
  for (let i = 0; i < 4; i++) {
    if (s < units[i][0]) continue;
    const big = Math.floor(s / units[i][0]), next = units[i + 1];
    const small = next ? Math.floor(s % units[i][0] / next[0]) : 0;
    return big + units[i][1] + (small ? " " + small + next[1] : "");
  }
  return "0s";
}
function clock(stamp) {
  const when = new Date(stamp);
  if (isNaN(when)) return String(stamp);
  const today = when.toDateString() === new Date().toDateString();
  return (today ? "" : when.toLocaleDateString() + " ") + when.toLocaleTimeString("en-GB");
}

// ---- page ------------------------------------------------------------------------------------------
function make(tag, text, cls) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (cls) node.className = cls;
  return node;
}
function many(n, one) { return `${n} ${one}${n === 1 ? "" : "s"}`; }
function set(node, text) { if (node.textContent !== text) node.textContent = text; }
function badge(word) {
  const known = Object.hasOwn(GLYPHS, word);
  const node = make("span", undefined, "state " + (known ? word : "stopped")), glyph = make("span", known ? GLYPHS[word] : "○");
  glyph.setAttribute("aria-hidden", "true");
  node.append(glyph, " " + word);
  return node;
}
function current() { return (state.doc?.apps || []).find((a) => a.name === state.app); }
function say(text, bad) {
  $("said").textContent = text;
  $("said").className = bad ? "bad" : "";
  clearTimeout(say.timer);
  say.timer = setTimeout(() => { $("said").textContent = ""; }, bad ? 20000 : 6000);
}

function draw() {
  const apps = state.doc?.apps || [];
  if (state.doc) {
    const d = state.doc.daemon || {}, bad = apps.filter(inTrouble).length;
    set($("daemon"), many(apps.length, "app") + (bad ? `, ${bad} in trouble` : ""));
    set($("uptime"), `· daemon ${d.version || ""}, up ${span(d.uptime_s)}`);  // not live: it is another one every second
    document.title = (bad ? `(${bad}) ` : "") + "pyworker";
  }
  const banner = state.away ? `${state.away}; trying again` : "";
  set($("banner"), banner);
  $("banner").hidden = !banner;
  if (!state.doc) return;
  if (!current() && apps.length) select(apps[0].name);
  drawApps(apps);
  $("no-apps").hidden = apps.length > 0;
  $("find").hidden = apps.length <= FEW_APPS;
  $("detail").hidden = !current();
  if (current()) drawDetail(current());
}

// by a part of the name or of the state; "trouble" is what the header counts
function found(app) {
  const text = $("find").hidden ? "" : $("find").value.trim().toLowerCase();
  return `${app.name} ${app.state}${inTrouble(app) ? " in trouble" : ""}`.toLowerCase().includes(text);
}
function inTrouble(app) { return app.state === "failed" || app.state === "degraded"; }
function drawApps(apps) {
  const list = $("apps");
  const have = new Map([...list.children].map((li) => [li.dataset.app, li]));
  apps.forEach((app, i) => {
    let li = have.get(app.name);
    have.delete(app.name);
    if (!li) {
      li = make("li");
      li.dataset.app = app.name;
      const button = make("button");
      button.type = "button";
      button.title = app.name;
      button.append(make("span", app.name, "app"), badge(app.state), make("span", "", "small"));
      button.addEventListener("click", () => choose(app.name));
      li.append(button);
    }
    if (list.children[i] !== li) list.insertBefore(li, list.children[i] || null);
    const button = li.firstChild, now = badge(app.state);
    if (button.children[1].textContent !== now.textContent) button.replaceChild(now, button.children[1]);
    const w = app.workers || {};
    set(button.children[2], `${w.ready}/${w.want ?? "–"} workers` + (w.total ? ` · ${percent(app.cpu_percent)} · ${size(memory(app))}` : "") +
        (w.total && app.http ? ` · ${rate(app.requests_per_s)} req/s` : ""));
    button.setAttribute("aria-current", String(app.name === state.app));
    li.hidden = !found(app);
  });
  have.forEach((li) => li.remove());
}

function drawDetail(app) {
  const w = app.workers || {};
  if ($("name").dataset.for !== app.name + app.state) {
    $("name").replaceChildren(app.name + " ", badge(app.state));
    $("name").dataset.for = app.name + app.state;
  }
  const queue = (app.queue || []).filter(Boolean).map((q) => q[0]).reduce((a, b) => a + b, 0);
  const listens = (app.listen || []).length > 0;
  const facts = [listens && app.listen.join(", "), listens && app.balance, `gen ${app.gen}`, known(app.uptime_s) && `up ${span(app.uptime_s)}`,
                 `${w.ready}/${w.want ?? "–"} workers ready`];
  if (app.http) facts.push(`${app.in_flight} in flight`, many(app.open_connections, "connection"), `${queue} waiting`, `5xx ${share(app.http.error_share)}`);
  if (app.next_run_at) facts.push("next run " + clock(app.next_run_at));
  if (app.next_reload_at) facts.push("next reload " + clock(app.next_reload_at));
  if (app.config?.changed) facts.push("config file changed since");
  // a fact stays on one line; a command may be long and breaks where it has spaces
  set($("facts"), [app.target, ...facts.map((fact) => fact && fact.replaceAll(" ", "\u00a0"))].filter(Boolean).join(" · "));
  const stopped = app.state === "stopped" || (app.state === "failed" && !w.total);
  for (const button of $("actions").children) {
    const act = button.dataset.act;
    button.hidden = act === "start" ? !stopped : act === "scale" || act === "stop" ? stopped : false;
    button.disabled = state.busy.has(app.name) || Boolean(state.away) || (stopped && act === "reload");
  }
  const sick = (app.pool || []).find((worker) => worker.health === "failing");
  const unwell = sick ? {message: `${app.name}.${sick.worker} fails its health check: ${sick.reason}`} : null;
  const job = app.state === "scheduled";
  const failure = app.last_failure && (inTrouble(app) || app.backoff || job) ? app.last_failure : unwell;
  $("failure").hidden = !failure;
  if (failure) {
    set($("failure").children[0], (failure === app.last_failure && job ? "failed at its last run: " : "") + failure.message + (failure.hint ? ` → ${failure.hint}` : ""));
    set($("failure").children[1], failure.traceback || "");
    $("failure").children[1].hidden = !failure.traceback || failure.traceback === failure.message;
  }
  const notes = [...app.notes || []];
  if (app.backoff) {
    const {try: count, max, in_s} = app.backoff;
    notes.unshift(`try ${count}${count <= max ? " of " + max : ""} ${in_s >= 1 ? "in " + span(in_s) : "now"}`);
  }
  if (app.drops) notes.push(`${many(app.drops, "line")} of its log could not be written → pyworker doctor`);
  set($("notes"), notes.join("\n"));
  $("notes").hidden = !notes.length;
  const body = $("workers").tBodies[0];
  (app.pool || []).forEach((worker, i) => {
    const counts = Boolean(app.http);
    const cells = [[`${app.name}.${worker.worker}`], [worker.state], [worker.pid || "–", 1], [worker.gen, 1],
      [percent(worker.cpu_percent), 1], [size(memory(worker)), 1], [rate(worker.requests_per_s), 1],
      [counts ? worker.in_flight : "–", 1], [counts ? worker.open_connections : "–", 1], [worker.restarts, 1],
      [span(worker.uptime_s)], [worker.last_exit?.reason || "–"]];
    let row = body.rows[i];
    if (!row) {
      row = body.insertRow();
      cells.forEach(([, number]) => { row.insertCell().className = number ? "n" : ""; });
    }
    cells.forEach(([text], j) => {
      if (j === 1) {
        if (row.cells[1].dataset.state !== text) { row.cells[1].replaceChildren(badge(text)); row.cells[1].dataset.state = text; }
      } else set(row.cells[j], String(text));
    });
  });
  while (body.rows.length > (app.pool || []).length) body.deleteRow(-1);
  $("workers").hidden = !body.rows.length;
  $("no-workers").hidden = body.rows.length > 0;
  drawCharts(app);
}

// ---- charts ----------------------------------------------------------------------------------------
const SVG = "http://www.w3.org/2000/svg";
function svg(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [k, v] of Object.entries(attributes)) node.setAttribute(k, v);
  return node;
}
function drawCharts(app) {
  const box = $("charts"), wanted = CHARTS.filter((c) => !c.http || app.http);
  if (box.dataset.keys !== wanted.map((c) => c.key).join()) {
    box.replaceChildren(...wanted.map(makeChart));
    box.dataset.keys = wanted.map((c) => c.key).join();
  }
  wanted.forEach((chart, i) => fillChart(box.children[i], chart));
}
function makeChart(chart) {
  const figure = make("figure"), caption = make("figcaption"), axis = make("div", undefined, "axis");
  figure.dataset.chart = chart.key;
  caption.append(make("span", chart.title), make("strong"));
  const picture = svg("svg", {viewBox: "0 0 100 100", preserveAspectRatio: "none", role: "img"});
  picture.append(svg("line", {class: "grid", x1: 0, x2: 100, y1: 100, y2: 100}), svg("line", {class: "grid", x1: 0, x2: 100, y1: 50, y2: 50}));
  chart.lines.forEach((_, i) => picture.append(svg("path", {class: "area a" + i}), svg("path", {class: "line c" + i})));
  axis.append(make("span"), make("span"), make("span", "now"));
  figure.append(caption, picture, axis);
  return figure;
}
function fillChart(figure, chart) {
  const end = Date.now() / 1000 - state.ahead, points = state.points;
  const first = points.length ? points[0][0] : end, from = Math.max(end - HOUR, Math.min(first, end - 300));
  const columns = chart.lines.map(([field]) => FIELDS.indexOf(field));
  let top = chart.least;
  for (const p of points) for (const c of columns) if (known(p[c]) && p[c] > top) top = p[c];
  const last = points[points.length - 1], words = [];
  columns.forEach((column, i) => {
    let line = "", area = "", begun = null, previous = null;
    const close = () => { if (begun !== null) area += `L${previous} 100L${begun} 100Z`; begun = null; };
    for (const p of points) {
      if (!known(p[column])) { close(); continue; }
      const x = ((p[0] - from) / (end - from) * 100).toFixed(2), y = (100 - p[column] / top * 96).toFixed(2);
      const gap = begun === null || x - previous > 100 * 30 / (end - from);
      if (gap) { close(); begun = x; }
      line += (gap ? `M${x} ${y}` : "") + `L${x} ${y}`;  // a point without neighbours is a dot
      area += (gap ? "M" : "L") + x + " " + y;
      previous = x;
    }
    close();
    const paths = figure.querySelectorAll("path");
    paths[2 * i].setAttribute("d", area);
    paths[2 * i + 1].setAttribute("d", line);
    let value = last ? last[column] : null;
    if (chart.sum) value = points.reduce((sum, p) => sum + (p[column] || 0), 0);
    words.push((chart.lines.length > 1 ? chart.lines[i][0] + " " : "") + chart.show(value));
  });
  set(figure.querySelector("strong"), words.join("  "));
  const axis = figure.querySelector(".axis").children;
  set(axis[0], Math.round((end - from) / 60) + "m ago");
  set(axis[1], points.some((p) => columns.some((c) => known(p[c]))) ? "max " + chart.show(top) : "no figures yet");
  figure.querySelector("svg").setAttribute("aria-label",
    `${chart.title}: ${words.join(", ")}${chart.sum ? " in this time" : " now"}, scale up to ${chart.show(top)}, ${span(end - from)}`);
}

// ---- log -------------------------------------------------------------------------------------------
function wanted() {
  const text = $("filter").value, pattern = text.match(/^\/(.*)\/$/);
  let regex = null;
  if (pattern && pattern[1]) try { regex = new RegExp(pattern[1], "gi"); } catch { /* not finished yet */ }
  if (!regex && text && !pattern) regex = new RegExp(text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "gi");
  return {regex, err: $("errors").checked};
}
// a line and what continues it (indented lines, a traceback) are shown or hidden together
function continues(record, state) {
  if (/^[ \t]/.test(record.msg)) return true;
  if (record.msg.startsWith("Traceback (most recent call last):")) { state.trace = true; return true; }
  if (state.trace && record.msg.trim()) { state.trace = false; return true; }
  return false;
}
function shown(lines, filter) {
  const records = [], open = new Map();
  for (const line of lines) {
    if (line.skipped) { records.push({lines: [line]}); open.clear(); continue; }
    const key = line.worker + line.stream + line.pid, before = open.get(key);
    if (before && continues(line, before)) before.lines.push(line);
    else { const r = {lines: [line], trace: line.msg.startsWith("Traceback")}; open.set(key, r); records.push(r); }
  }
  return records.filter((record) => record.lines[0].skipped
    || ((!filter.err || record.lines[0].stream === "err")
        && (!filter.regex || record.lines.some((l) => { filter.regex.lastIndex = 0; return filter.regex.test(l.msg); }))))
    .flatMap((record) => record.lines);
}
// a line may come in parts
function joinLines(batch) {
  for (const line of batch) {
    if (line.skipped) state.unfinished.clear();
    const key = line.worker + line.stream + line.pid, before = state.unfinished.get(key);
    if (before) before.msg += line.msg;
    else state.lines.push(line);
    if (!line.partial || (before || line).msg.length > LONGEST_LINE) state.unfinished.delete(key);
    else if (!before) state.unfinished.set(key, line);
  }
}
function addLines(batch) {
  joinLines(batch);
  if (state.lines.length > 2 * KEPT_LINES) {  // what the filter looks for outlives what it hides
    const filter = wanted(), old = state.lines.slice(0, -KEPT_LINES);
    state.lines = (filter.err || filter.regex ? shown(old, filter).slice(-KEPT_LINES) : []).concat(state.lines.slice(-KEPT_LINES));
  }
  // a picture of each batch would leave a flood's reader no time for anything else
  addLines.timer ??= setTimeout(() => { addLines.timer = undefined; if (follows()) drawLog(); }, DRAW_LOG);
}
// what is being read stays where it is; an empty box is not being read
function follows() { return !$("log").querySelector("div") || ($("follow").checked && !marked()); }
function marked() { const found = getSelection(); return !found.isCollapsed && found.containsNode($("log"), true); }
function drawLog() {
  const filter = wanted(), box = $("log"), lines = shown(state.lines, filter);
  box.replaceChildren(...lines.slice(-800).map((line) => lineNode(line, filter.regex)));
  if (!lines.length) box.append(make("p", state.lines.length ? "no line is met by the filter" : "nothing has been printed yet", "stopped"));
  if ($("follow").checked) box.scrollTop = box.scrollHeight;
}
function lineNode(line, regex) {
  if (line.skipped) return make("div", `… ${size(line.skipped)} left out here: more than can be shown. pyworker logs ${state.app} has all of it`, "skipped");
  const node = make("div", undefined, line.stream), text = make("span");
  node.append(make("span", `${clock(line.ts).slice(-8)} ${line.worker ? "." + line.worker : "template"}`, "who"), text);
  let at = 0;
  if (regex) regex.lastIndex = 0;  // a global pattern remembers where it stopped
  if (regex) for (const m of line.msg.matchAll(regex)) {
    if (!m[0]) continue;
    text.append(line.msg.slice(at, m.index), make("mark", m[0]));
    at = m.index + m[0].length;
  }
  text.append(line.msg.slice(at));
  return node;
}

function drawEvents() {
  const mine = state.events.filter((e) => !e.app || e.app === state.app).slice(-100).reverse();
  $("events").replaceChildren(...mine.map((event) => {
    const li = make("li"), when = make("time", clock(event.time));
    when.dateTime = event.time;
    const bad = /failed|exited|refused/.test(event.type), wary = /backoff|unhealthy|recycled|rolled/.test(event.type);
    li.append(when, make("span", event.app ? event.app + (event.worker ? "." + event.worker : "") : "pyworker"), make("span", event.words, bad ? "bad" : wary ? "wary" : ""));
    return li;
  }));
  if (!mine.length) $("events").append(make("li", "nothing has happened yet", "stopped"));
}

// ---- the server ------------------------------------------------------------------------------------
async function call(path, options = {}) {
  const answer = await fetch(path, {...options, headers: {...(options.headers || {}), ...(state.token ? {Authorization: "Bearer " + state.token} : {})}, cache: "no-store"});
  if (answer.status === 401) { askToken(Boolean(state.token)); throw new Error("the token is missing or wrong"); }
  return answer;
}
// EventSource cannot send a header, and a token has no place in an address: so the stream is read by hand
async function listen(path, handlers, abort) {
  // a connection that a sleep or a tunnel has taken does not end; the server says something every 15 s
  const cut = new AbortController(), leave = () => cut.abort();
  abort.signal.addEventListener("abort", leave);
  let heard = Date.now();
  const watch = setInterval(() => { if (Date.now() - heard > SILENT * 1000) { state.failures ||= 1; cut.abort(); } }, 1000);
  try {
    const answer = await call(path, {signal: cut.signal});
    if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const {value, done} = await reader.read();
      if (done) return;
      heard = Date.now();
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const kind = part.match(/^event: (.*)$/m), data = part.match(/^data: (.*)$/m);
        if (kind && data && handlers[kind[1]]) handlers[kind[1]](JSON.parse(data[1]));
      }
    }
  } finally {
    clearInterval(watch);
    abort.signal.removeEventListener("abort", leave);
  }
}
async function follow() {
  if (follow.runs) return;  // one that waits to try again takes the new token
  follow.runs = true;
  for (;;) {
    try {
      await listen("/api/stream", {
        state: (v) => { state.failures = 0; state.events = v.events; look(v); drawEvents(); loadHistory(); },
        look,
        event: (e) => { state.events.push(e); if (state.events.length > 300) state.events.shift(); drawEvents(); },
        point: (p) => {
          const mine = p.apps[state.app];
          while (state.points.length && state.points.at(-1)[0] > p.t) state.points.pop();  // the clock was set back
          if (mine) { state.points.push([p.t, ...mine]); if (state.points.length > KEPT_POINTS) state.points.shift(); draw(); }
        },
      }, new AbortController());
    } catch { if (!$("ask-token").hidden) { follow.runs = false; return; } }
    state.away = state.failures++ ? "the dashboard's server does not answer" : state.away;
    draw();
    await new Promise((done) => setTimeout(done, Math.min(10000, 500 * 2 ** state.failures)));
  }
}
function look(v) {
  if (v.document) state.doc = v.document;
  state.away = v.away || "";
  state.ahead = Date.now() / 1000 - v.now;  // of the server's clock, which the points have
  $("main").hidden = !state.doc;
  if (!state.doc) { set($("daemon"), ""); set($("uptime"), ""); }
  draw();
}
async function loadHistory() {
  const app = state.app;
  if (!app) return;
  try {
    const answer = await (await call(`/api/apps/${encodeURIComponent(app)}/history`)).json();
    if (app === state.app) { state.points = answer.points; draw(); }
  } catch { /* the next point comes anyway */ }
}
async function followLog(app) {
  state.logAbort?.abort();
  const abort = state.logAbort = new AbortController();
  state.lines = [];
  state.unfinished.clear();
  drawLog();
  while (!abort.signal.aborted) {
    try {
      let fresh = true;
      await listen(`/api/apps/${encodeURIComponent(app)}/logs`, {lines: (batch) => {
        if (fresh) { state.lines = []; state.unfinished.clear(); fresh = false; }
        addLines(batch);
      }}, abort);
    } catch { /* again below */ }
    if (!$("ask-token").hidden) return;
    await new Promise((done) => setTimeout(done, 1000));
  }
}
function select(name) {
  if (state.app === name) return;
  state.app = name;
  state.points = [];
  loadHistory();
  followLog(name);
  drawEvents();
}
function choose(name) {
  select(name);
  draw();
  document.querySelector('#apps button[aria-current="true"]')?.scrollIntoView({block: "nearest", inline: "nearest"});
}
function askToken(wrong) {
  if (!$("ask-token").hidden) return;  // somebody types
  set($("token-wrong"), wrong ? "This token is not the right one (any more)." : "");
  $("token").value = "";
  $("ask-token").hidden = false;
  $("main").hidden = true;
  set($("daemon"), "");
  set($("uptime"), "");
  state.away = "";
  $("banner").hidden = true;
  $("token").focus();
}

// ---- doing -----------------------------------------------------------------------------------------
const ASK = {
  reload: (a) => [`Reload ${a.name}?`, "New code and settings come in; no request is lost. Code that does not start changes nothing.", "Reload"],
  scale: (a) => [`Scale ${a.name}`, `It has ${a.workers.want} worker${a.workers.want === 1 ? "" : "s"}.`, "Scale"],
  stop: (a) => [`Stop ${a.name}?`, "Open requests may finish. Its port is closed until it is started again.", "Stop"],
  start: (a) => [`Start ${a.name}?`, "From the config file as it is now.", "Start"],
};
function ask(action, by) {
  const app = current();
  if (!app || $("confirm").open) return;
  const button = $("actions").querySelector(`[data-act="${action}"]`);
  if (button.hidden || button.disabled) return;  // a key does what its button does
  const [question, consequence, yes] = ASK[action](app);
  set($("question"), question);
  set($("consequence"), consequence);
  set($("yes"), yes);
  $("number").hidden = action !== "scale";
  $("workers-wanted").value = Math.max(0, app.workers.want + (by || 0));
  const from = document.activeElement;
  $("confirm").returnValue = "";
  $("confirm").onclose = () => {
    if ($("confirm").returnValue === "yes") act(app.name, action, Number($("workers-wanted").value), from);
  };
  $("confirm").showModal();
  (action === "scale" ? $("workers-wanted") : $("no")).focus();
}
// the first button of a form is what Enter presses, and that is Cancel; after a number it means yes
$("workers-wanted").addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); $("yes").click(); } });
async function act(name, action, workers, from) {
  state.busy.add(name);
  draw();
  say(`${action} of ${name} …`);
  try {
    const scale = action === "scale";
    const answer = await call(`/api/apps/${encodeURIComponent(name)}/${action}`, {
      method: "POST", headers: {"Content-Type": "application/json"}, body: scale ? JSON.stringify({workers}) : "{}"});
    const found = await answer.json();
    const failed = found.error || (found.apps || []).find((a) => !a.ok);
    if (failed) say(`${action} of ${name} failed: ${failed.message || failed.reason}${failed.hint ? " → " + failed.hint : ""}`, true);
    else say((found.apps || []).map((a) => `${a.app} ${a.action}: ${a.workers.ready}/${a.workers.want} workers ready, ${a.took_s.toFixed(1)}s`).join("; "));
  } catch (error) {
    say(`${action} of ${name}: ${error.message}`, true);
  } finally {
    state.busy.delete(name);
    draw();
    // a button that is disabled or hidden gives the focus up: who uses keys goes on where they were
    if (document.activeElement === document.body && $("actions").contains(from))
      (from.hidden || from.disabled ? $("actions").querySelector("button:not([hidden], :disabled)") : from)?.focus();
  }
}

// ---- keys and the start ----------------------------------------------------------------------------
function move(by) {
  const names = (state.doc?.apps || []).filter(found).map((a) => a.name);
  if (!names.length) return;
  const at = names.indexOf(state.app);
  choose(names[at < 0 ? 0 : (at + by + names.length) % names.length]);
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.target.matches("input:not([type=checkbox])")) { if (event.key === "Escape") { event.target.blur(); } return; }
  const keys = {j: () => move(1), k: () => move(-1), r: () => ask("reload"), "+": () => ask("scale", 1), "-": () => ask("scale", -1),
    "/": () => $("filter").focus(), f: () => { $("follow").click(); }, "?": () => $("keys").showModal()};
  if (keys[event.key] && !$("main").hidden) { event.preventDefault(); keys[event.key](); }
});
$("actions").addEventListener("click", (event) => { if (event.target.dataset.act) ask(event.target.dataset.act); });
$("help").addEventListener("click", () => $("keys").showModal());
$("find").addEventListener("input", draw);
for (const id of ["filter", "errors", "follow"]) $(id).addEventListener("input", drawLog);
$("log").addEventListener("scroll", () => {
  const box = $("log");
  if (box.scrollHeight - box.scrollTop - box.clientHeight > 60 && $("follow").checked && box.matches(":hover, :focus")) $("follow").checked = false;
});
const THEMES = {"": "as the system", light: "light", dark: "dark"};
function theme(name) {
  if (name) document.documentElement.dataset.theme = name; else delete document.documentElement.dataset.theme;
  $("theme").setAttribute("aria-label", "Colours: " + THEMES[name]);
  $("theme").title = "Colours: " + THEMES[name];
  try { localStorage.setItem("theme", name); } catch { /* private window */ }
}
$("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  theme(names[(names.indexOf(document.documentElement.dataset.theme || "") + 1) % names.length]);
});
$("ask-token").addEventListener("submit", (event) => {
  event.preventDefault();
  take($("token").value.trim());
});
try { const kept = localStorage.getItem("theme"); theme(kept in THEMES ? kept : ""); } catch { theme(""); }
function take(token) {
  state.token = token;
  try { sessionStorage.setItem("token", token); } catch { /* only for this page then */ }
  $("ask-token").hidden = true;
  follow();
  if (state.app) followLog(state.app);
}
// the printed address, also one that is put where this page is open already
function arrive() {
  const given = location.hash.match(/^#token=([\w-]+)$/);
  if (!given) return false;
  history.replaceState(null, "", location.pathname);  // not left in the address bar, the history, a screenshot
  take(given[1]);
  return true;
}
addEventListener("hashchange", arrive);
setInterval(draw, 5000);
if (!arrive()) {
  try { state.token = sessionStorage.getItem("token") || ""; } catch { /* it is asked for */ }
  follow();
}
