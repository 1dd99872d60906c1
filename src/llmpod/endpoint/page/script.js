"use strict";
// What the pages of both kinds of endpoint share. A page defines `show(state)` and calls `forever()`.
// Everything from outside reaches the page through textContent: a log line, an id or a path cannot become markup.
const $ = (id) => document.getElementById(id);
const WINDOW_S = 120;
let key = sessionStorage.getItem("llmpod-key") || "", points = [], ended = 0, counts = [];

async function api(path, options = {}) {
  const headers = key ? { Authorization: "Bearer " + key } : {};
  const response = await fetch(path, { ...options, headers });
  if (response.status === 401) { if (!$("ask").open) $("ask").showModal(); throw new Error("the API key is missing or wrong"); }
  const body = await response.json();
  if (!response.ok) throw new Error(body.error || response.status);
  return body;
}
$("ask").addEventListener("close", () => { key = $("key").value; sessionStorage.setItem("llmpod-key", key); tick(); });

function cell(row, text, kind) {
  const td = row.insertCell();
  td.textContent = text ?? "";
  if (kind) td.className = kind;
  return td;
}
const ms = (value) => value == null ? "" : value < 1000 ? value + " ms" : (value / 1000).toFixed(value < 10000 ? 2 : 1) + " s";
const seconds = (value) => value == null ? "" : value < 120 ? Math.round(value) + " s" : Math.round(value / 60) + " min";

// Sets the rate of the last 10 s; `total`: how many there have been.
function showRate(state, total) {
  counts = [...counts, [state.time, total]].filter(([time]) => time > state.time - 10);
  const [from, before] = counts[0];
  $("rate").textContent = state.time > from ? ((total - before) / (state.time - from)).toFixed(1) : "–";
}

// Changes only the cells that differ, so that a button keeps its focus, a click its target, a selected id its selection.
function renew(shown, fresh) {
  const before = [...shown.children], after = [...fresh.children];
  before.slice(after.length).forEach((child) => child.remove());
  after.forEach((child, at) => {
    if (!before[at]) shown.append(child);
    else if (child.tagName === "TR") renew(before[at], child);
    else if (!before[at].isEqualNode(child)) before[at].replaceWith(child);
  });
}

// One row for each of `items`.
function showRows(table, items, width, columns, nothing = "none yet") {
  const fresh = document.createElement("tbody");
  for (const item of items) columns(fresh.insertRow(), item);
  if (!items.length) cell(fresh.insertRow(), nothing, "soft").colSpan = width;
  renew(table, fresh);
}

// One row per worker; `columns(row, worker)` adds the cells between its state and its age.
function showWorkers(state, width, columns) {
  $("up").textContent = state.workers.filter((worker) => ["idle", "running"].includes(worker.state)).length;
  showRows($("workers"), [...state.workers].reverse(), width, (row, worker) => {
    cell(row, worker.id, "id").title = worker.id + (worker.pid ? ", pid " + worker.pid : "");
    const how = worker.ending ?? worker.state;
    cell(row, how, "state " + how.split(" ")[0]);
    columns(row, worker);
    cell(row, seconds(worker.age_s), "number later");
    const actions = cell(row, worker.note, worker.note ? "note" : "");
    if (worker.pid) for (const action of ["stop", "kill"]) {
      const button = document.createElement("button");
      button.className = "plain"; button.textContent = action; button.style.marginRight = "5px";
      button.dataset.path = `/control/workers/${encodeURIComponent(worker.id)}/${action}`;
      actions.append(button);
    }
  }, "none");
  choices(state.workers);
}
$("workers").onclick = ({ target }) => target.dataset.path && api(target.dataset.path, { method: "POST" }).then(tick, complain);

// `fresh`: [time, first ms or null, second ms] of what has ended since the last call.
function showPoints(state, fresh) {
  if (state.ended_count < ended) points = [];  // the endpoint was started anew
  ended = state.ended_count;
  points = [...points, ...fresh].filter(([time]) => time > state.time - WINDOW_S);
  plot(state.time);
}

function choices(workers) {
  const select = $("which"), chosen = select.value, ids = workers.map((worker) => worker.id).reverse();
  if (ids.join() !== [...select.options].map((option) => option.value).join()) {
    select.replaceChildren(...ids.map((id) => new Option(id, id)));
    if (ids.includes(chosen)) select.value = chosen;
  }
}

async function logs() {
  if (!$("which").value) return;
  const { lines } = await api(`/control/workers/${encodeURIComponent($("which").value)}/logs`);
  const box = $("logs"), atEnd = box.scrollTop + box.clientHeight > box.scrollHeight - 30, text = lines.join("\n");
  if (box.textContent !== text) { box.textContent = text; if (atEnd) box.scrollTop = box.scrollHeight; }
}

function plot(now) {
  const canvas = $("plot"), scale = devicePixelRatio || 1, style = getComputedStyle(document.documentElement);
  const width = canvas.clientWidth, height = canvas.clientHeight, left = 52, bottom = 20;
  canvas.width = width * scale; canvas.height = height * scale;
  const draw = canvas.getContext("2d");
  draw.scale(scale, scale);
  draw.font = "11px system-ui"; draw.fillStyle = style.getPropertyValue("--soft"); draw.strokeStyle = style.getPropertyValue("--line");
  const values = points.flatMap(([, first, second]) => first == null ? [second] : [first, second]);
  // Whole decades around the data: 1 ms to 10 ms without any, and at least one decade.
  const logs = values.map((value) => Math.log10(Math.max(1, value)));
  const low = Math.floor(logs.reduce((least, log) => Math.min(least, log), logs.length ? Infinity : 0));
  const high = Math.max(low + 1, Math.ceil(logs.reduce((most, log) => Math.max(most, log), 0)));
  const y = (value) => 8 + (height - bottom - 12) * (1 - (Math.log10(Math.max(1, value)) - low) / (high - low));
  canvas.dataset.scale = `${10 ** low} to ${10 ** high} ms`;
  for (let decade = low; decade <= high; decade++) {
    const at = y(10 ** decade);
    draw.beginPath(); draw.moveTo(left, at); draw.lineTo(width, at); draw.stroke();
    draw.textAlign = "right"; draw.fillText(ms(10 ** decade), left - 8, at + 4);
  }
  draw.textAlign = "left"; draw.fillText("-2 min", left, height - 4);
  draw.textAlign = "right"; draw.fillText("now", width, height - 4);
  for (const [time, first, second] of points) {
    const x = left + (width - left) * (1 - (now - time) / WINDOW_S);
    if (x < left) continue;
    for (const [value, name] of [[first, "--delay"], [second, "--exec"]]) {
      if (value == null) continue;
      draw.fillStyle = style.getPropertyValue(name);
      if (name === "--delay") draw.fillRect(x - 2.5, y(value) - 2.5, 5, 5);
      else { draw.beginPath(); draw.arc(x, y(value), 2.5, 0, 7); draw.fill(); }
    }
  }
  canvas.dataset.points = points.length;
}

$("which").onchange = () => logs().catch(complain);

function complain(error) { $("trouble").textContent = error.message; }
async function tick() {
  try { show(await api("/control/state?after=" + ended)); await logs(); $("trouble").textContent = ""; }
  catch (error) { complain(error instanceof TypeError ? new Error("the endpoint does not answer") : error); }
}
async function forever() { if (!document.hidden) await tick(); setTimeout(forever, 1000); }
