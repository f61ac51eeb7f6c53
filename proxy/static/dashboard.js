// What pages do beyond HTML: live regions, charts with their tables, and the detail of a token. Works without: then
// pages are still complete but for the charts, whose numbers are one link away.
"use strict";

const LIVE_MS = 5000;
const $ = (selector, within = document) => within.querySelector(selector);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const stamp = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 19).replace("T", " ");
const show = (value, digits = 4) => (value === null || value === undefined ? "–" : Number(value.toFixed(digits)).toLocaleString("en"));

// --- live regions: the page is fetched again, and what changed in [data-live] is put in its place
function live() {
  const regions = all("[data-live]");
  const state = $("#live-state");
  if (!regions.length || !state) return;
  const pause = $("#live-pause");
  let paused = false;
  pause.hidden = false;
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.textContent = paused ? "Resume" : "Pause";
    pause.setAttribute("aria-pressed", String(paused));
    state.textContent = paused ? "Paused" : "Live";
  });
  const tell = (text) => { if (state.textContent !== text) state.textContent = text; };
  async function renew() {
    if (paused || document.hidden) return;
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      if (answer.redirected) { location.reload(); return; }
      if (!answer.ok) throw new Error(String(answer.status));
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const region of regions) replace(region, fresh.getElementById(region.id));
      for (const figure of all("figure.chart")) figure.dispatchEvent(new Event("renew"));
      tell(verdicts() || "Live");
    } catch (error) {
      tell("The dashboard does not answer; trying again");
    }
  }
  setInterval(renew, LIVE_MS);
}

function replace(region, fresh) {
  if (!fresh || fresh.innerHTML === region.innerHTML || region.contains(document.activeElement)) return;
  const open = all("details", region).map((one) => one.open);
  region.replaceChildren(...fresh.childNodes);
  all("details", region).forEach((one, index) => { one.open = open[index] || false; });
  if (fresh.dataset.verdict) region.dataset.verdict = fresh.dataset.verdict;
}

// a status region speaks only when its text changes: tell what deviates, not every refresh
function verdicts() {
  const deviating = all('[data-verdict="deviates"]').length;
  return deviating ? `Live: ${deviating} deviating` : "Live";
}

// --- charts
const KINDS = {
  match: {
    series: [["match_high", "upper end", "edge"], ["match_low", "lower end", "edge"], ["match_mean", "match rate", "line"],
      ["match_tolerated", "tolerated from", "dash"], ["match_rate", "this span", "dots"]],
    band: [1, 2],
  },
  evidence: { series: [["log_e", "ln e-value", "line"], ["alarm", "alarm", "dash"]] },
  tokens: { series: [["tokens", "tokens", "bars"]] },
  detector: {
    series: [["high", "upper end", "edge"], ["low", "lower end", "edge"], ["mean", "mean", "line"], ["tolerated", "tolerated", "dash"]],
    band: [1, 2],
  },
};

function series([, label, style]) {
  const line = { label, spanGaps: true, points: { show: false }, value: (_, v) => show(v) };
  if (style === "edge") return { ...line, stroke: color("--band"), width: 1 };
  if (style === "dash") return { ...line, stroke: color("--tolerated"), width: 1.5, dash: [6, 5] };
  if (style === "dots") return { ...line, stroke: color("--quiet"), width: 0, points: { show: true, size: 4, fill: color("--quiet") } };
  if (style === "bars") return { ...line, stroke: color("--series"), fill: color("--band"), paths: uPlot.paths.bars({ size: [0.8, 40] }), points: { show: false } };
  return { ...line, stroke: color("--series"), width: 2, points: { show: true, size: 5 } };
}

// UTC, as everywhere: the day where the axis spans days, else the time
function moments(_, ticks) {
  const step = ticks.length > 1 ? ticks[1] - ticks[0] : 60;
  return ticks.map((tick) => (step >= 86400 ? stamp(tick).slice(5, 10) : stamp(tick).slice(11, step < 60 ? 19 : 16)));
}

function options(kind, width) {
  const axis = { stroke: color("--quiet"), grid: { stroke: color("--line"), width: 1 }, ticks: { stroke: color("--line") }, font: "12px system-ui" };
  return {
    width, height: 210, tzDate: (ts) => uPlot.tzDate(new Date(ts * 1000), "Etc/UTC"),
    scales: { x: { time: true, range: (_, min, max) => (max > min ? [min, max] : [min - 60, min + 60]) } }, axes: [{ ...axis, values: moments, space: 80 }, { ...axis, size: 62 }],
    series: [{ label: "UTC", value: (_, v) => (v === null ? "–" : stamp(v)) }, ...kind.series.map(series)],
    bands: kind.band ? [{ series: kind.band, fill: color("--band") }] : [],
    cursor: { drag: { x: false, y: false } },
  };
}

function draw(figure, kind, data) {
  const place = $(".plot", figure);
  const width = place.clientWidth || 300;
  if (figure.plot) figure.plot.destroy();
  figure.plot = new uPlot(options(kind, width), data, place);
  figure.dataset.points = String(data[0].length);
  fillTwin(figure, kind, data);
}

function fillTwin(figure, kind, data) {
  const twin = $(".twin", figure);
  const details = twin.closest("details");
  figure.numbers = () => {
    const table = document.createElement("table");
    const head = table.createTHead().insertRow();
    const names = ["UTC", ...kind.series.map(([name]) => name.replaceAll("_", " "))];
    for (const name of names) {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.textContent = name;
      head.append(cell);
    }
    const body = table.createTBody();
    for (let i = data[0].length - 1; i >= 0; i--) {
      const row = body.insertRow();
      data.forEach((column, place) => {
        const cell = document.createElement(place ? "td" : "th");
        if (!place) cell.scope = "row";
        cell.textContent = place ? show(column[i]) : stamp(column[i]);
        row.append(cell);
      });
    }
    twin.replaceChildren(table);
  };
  if (details.open) figure.numbers();
  details.ontoggle = () => { if (details.open) figure.numbers(); };
}

const fetched = new Map();
async function json(url, fresh) {
  if (fresh || !fetched.has(url)) fetched.set(url, fetch(url).then((answer) => { if (!answer.ok) throw new Error(url); return answer.json(); }));
  return fetched.get(url);
}

async function drawSource(figure, fresh) {
  const kind = KINDS[figure.dataset.chart];
  const { rows } = await json(figure.dataset.source, fresh);
  const at = rows.map((row) => Date.parse(row.at) / 1000);
  const alarm = Math.log(1000);
  const column = (name) => rows.map((row) => (name === "alarm" ? alarm : row[name]));
  draw(figure, kind, [at, ...kind.series.map(([name]) => column(name))]);
}

async function drawDetectors(box) {
  const { at, detectors } = await json(box.dataset.detectors, true);
  const times = at.map((moment) => Date.parse(moment) / 1000);
  const named = Object.entries(detectors);
  // all figures first: the width of one depends on how many stand beside it
  const figures = named.map(([name, { unit }]) => document.getElementById(`detector-${name}`)
    || blankFigure(box, `detector-${name}`, `${name.replaceAll("_", " ")} (${unit})`));
  for (const [place, [, detector]] of named.entries()) {
    draw(figures[place], KINDS.detector, [times, ...KINDS.detector.series.map(([column]) => detector[column])]);
  }
}

function blankFigure(box, id, title) {
  const figure = document.createElement("figure");
  figure.className = "chart";
  figure.id = id;
  const caption = document.createElement("figcaption");
  caption.textContent = title;
  const plot = document.createElement("div");
  plot.className = "plot";
  plot.setAttribute("aria-hidden", "true");
  const details = document.createElement("details");
  const summary = document.createElement("summary");
  summary.textContent = "The chart's numbers as a table";
  const twin = document.createElement("div");
  twin.className = "twin scroll";
  twin.tabIndex = 0;
  twin.setAttribute("role", "region");
  twin.setAttribute("aria-label", title);
  details.append(summary, twin);
  figure.append(caption, plot, details);
  box.append(figure);
  return figure;
}

function charts() {
  if (!window.uPlot) return;
  const figures = all("figure.chart[data-source]");
  const box = $("[data-detectors]");
  const redraw = (fresh) => {
    const waiting = figures.map((figure, index) => drawSource(figure, fresh && index === 0));
    if (box) waiting.push(drawDetectors(box));
    return Promise.allSettled(waiting);
  };
  redraw(false);
  let width = document.documentElement.clientWidth;
  addEventListener("resize", () => {
    if (width === document.documentElement.clientWidth) return;
    width = document.documentElement.clientWidth;
    for (const figure of all("figure.chart")) if (figure.plot) figure.plot.setSize({ width: $(".plot", figure).clientWidth, height: 210 });
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw(false));
  if (figures.length) figures[0].addEventListener("renew", () => redraw(true));
}

// --- tokens: the detail of the token that is pointed at, or that the arrow keys have reached
function tokens() {
  const box = $("#tokens");
  if (!box) return;
  const spans = all(".t", box);
  const rows = all("#token-table tbody tr");
  const heads = all("#token-table thead th").map((cell) => cell.textContent);
  const detail = $("#token-detail");
  let here = -1;
  function reach(index) {
    if (index < 0 || index >= spans.length || index === here) return;
    if (here >= 0) spans[here].classList.remove("here");
    here = index;
    spans[here].classList.add("here");
    detail.replaceChildren(...[...rows[here].cells].map((cell, place) => {
      const part = document.createElement("span");
      const name = document.createElement("b");
      name.textContent = `${heads[place]} `;
      part.append(name, cell.textContent);
      return part;
    }));
  }
  box.addEventListener("mouseover", (event) => { const span = event.target.closest(".t"); if (span) reach(Number(span.dataset.row)); });
  box.addEventListener("click", (event) => { const span = event.target.closest(".t"); if (span) reach(Number(span.dataset.row)); });
  box.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 };
    let target = null;
    if (event.key in steps) target = Math.min(Math.max(here + steps[event.key], 0), spans.length - 1);
    if (event.key === "Home") target = 0;
    if (event.key === "End") target = spans.length - 1;
    if (target === null) return;
    event.preventDefault();
    reach(target);
    spans[target].scrollIntoView({ block: "nearest" });
  });
}

live();
charts();
tokens();
