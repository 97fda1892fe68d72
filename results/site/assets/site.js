"use strict";
// Draws the charts, sorts and filters tables, and copies commands. The pages can be read without it.

// Charts

const LOOK = { // colors follow the color scheme of the page
  background: null,
  font: "system-ui, sans-serif",
  axis: {
    labelColor: "currentColor", titleColor: "currentColor", gridColor: "var(--grid)",
    domainColor: "var(--line)", tickColor: "var(--line)", labelFontSize: 12, titleFontSize: 12,
    titleFontWeight: "normal", labelLimit: 260,
  },
  axisX: { tickCount: 6, titleAnchor: "end" }, // a long title extends over the labels of the y axis
  axisY: { tickCount: 5 },
  legend: { labelColor: "currentColor", orient: "bottom", labelFontSize: 12, symbolSize: 110, symbolStrokeWidth: 0, symbolOpacity: 1 },
  header: { labelColor: "currentColor", titleColor: "currentColor" },
  title: { color: "currentColor", fontSize: 13, fontWeight: "normal", anchor: "start" },
  view: { stroke: null },
  style: { "guide-label": { fill: "currentColor" }, "guide-title": { fill: "currentColor" } },
};

function draw(place, spec) {
  if (typeof vegaEmbed !== "function" || place === null) return; // the hint stays
  const columns = place.clientWidth < 640 ? 1 : 2;
  const legend = { ...LOOK.legend, columns, labelLimit: place.clientWidth / columns - 60 };
  const options = { actions: false, renderer: "svg", config: { ...LOOK, legend } };
  vegaEmbed(place, spec, options).catch((error) => {
    place.textContent = `This chart cannot be drawn: ${error.message}`;
    console.error(error);
  });
}

const specs = {};
for (const source of document.querySelectorAll("script[data-chart]")) {
  const { like, ...own } = JSON.parse(source.textContent);
  const base = specs[like]; // an earlier chart of the page, which differs in its data
  const spec = base ? { ...base, ...own, data: { ...base.data, ...own.data } } : own;
  specs[source.dataset.chart] = spec;
  draw(document.getElementById(source.dataset.chart), spec);
}

// Curves that the reader chooses

for (const source of document.querySelectorAll("script[data-choice]")) {
  const data = JSON.parse(source.textContent);
  const place = document.getElementById(source.dataset.choice);
  const panel = document.getElementById("panel");
  const boxes = [...document.querySelectorAll("input[name=curve]")];
  const show = () => {
    const series = boxes.filter((box) => box.checked).map((box) => data.series[Number(box.value)]);
    const shown = series.filter((own) => own.curves[panel.value]);
    if (shown.length > 0) draw(place, chosen(data, shown, panel.value));
    else place.textContent = series.length > 0 ? "No chosen run records this." : "Nothing is chosen.";
  };
  for (const input of [panel, ...boxes]) input.addEventListener("change", show);
  show();
}

function chosen(data, series, panel) {
  const spec = structuredClone(data.spec);
  const values = series.flatMap((own) => own.curves[panel].map(([epoch, mean, std]) => (
    { series: own.label, epoch, mean, low: mean - std, high: mean + std })));
  const ranges = {
    color: series.map((own) => own.color),
    strokeDash: series.map((own, place) => data.dashes[place % data.dashes.length]),
    shape: series.map((own, place) => data.shapes[place % data.shapes.length]),
  };
  spec.data = { values };
  for (const layer of spec.layer) {
    layer.encoding.y.title = data.panels[panel];
    for (const channel of Object.keys(ranges).filter((name) => name in layer.encoding)) {
      layer.encoding[channel].scale = { domain: series.map((own) => own.label), range: ranges[channel] };
    }
  }
  return spec;
}

// Tables: a button in the head of a column sorts by it; empty cells stay last. Rows of one method stay together.

for (const table of document.querySelectorAll("table[data-sortable]")) {
  for (const button of table.querySelectorAll("button[data-sort]")) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      sort(table, head, head.getAttribute("aria-sort") === "descending" ? "ascending" : "descending");
    });
  }
}

for (const select of document.querySelectorAll("select[data-sort-by]")) {
  select.addEventListener("change", () => {
    const table = document.getElementById(select.dataset.sortBy);
    const head = table.querySelector("th[aria-sort=ascending], th[aria-sort=descending]");
    if (head) sort(table, head, head.getAttribute("aria-sort"));
  });
}

function sort(table, head, order) {
  for (const other of table.querySelectorAll("th[aria-sort]")) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", order);
  const heads = [...head.parentElement.cells];
  const fromEnd = heads.length - heads.indexOf(head); // cells of methods span rows
  const isNumber = head.querySelector("button").dataset.sort === "number";
  const isGrouped = table.classList.contains("numbers");
  const units = isGrouped ? [...table.tBodies].filter((body) => !("fixed" in body.dataset)) : [...table.tBodies[0].rows];
  const value = (unit) => valueOf(isGrouped ? rowOf(table, unit, isNumber) : unit, fromEnd, isNumber);
  const keyed = units.map((unit) => [value(unit), unit]);
  const sign = order === "ascending" ? 1 : -1;
  keyed.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : sign * compare(a, b)));
  for (const [, unit] of keyed) unit.parentElement.append(unit);
}

function rowOf(table, body, isNumber) {
  const select = document.querySelector(`select[data-sort-by="${table.id}"]`);
  const kind = isNumber && select ? select.value : null;
  return kind === null ? body.rows[0] : [...body.rows].find((row) => row.dataset.kind === kind) ?? null;
}

function valueOf(row, fromEnd, isNumber) {
  const cell = row?.cells[row.cells.length - fromEnd];
  if (!cell) return null;
  const text = cell.dataset.value ?? cell.textContent.trim();
  if (!isNumber) return text;
  const number = text === "" ? NaN : Number(text);
  return Number.isNaN(number) ? null : number;
}

function compare(a, b) {
  return typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
}

for (const table of document.querySelectorAll("table[data-filter]")) {
  const search = document.getElementById(table.dataset.filter);
  const setting = document.getElementById("filter-setting");
  const count = document.getElementById("filter-count");
  const rows = [...table.tBodies[0].rows].map((row) => [row, row.textContent.toLowerCase(), row.cells[2].textContent]);
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/);
    let shown = 0;
    for (const [row, text, own] of rows) {
      row.hidden = !(words.every((word) => text.includes(word)) && (setting.value === "" || setting.value === own));
      shown += row.hidden ? 0 : 1;
    }
    count.textContent = `${shown} of ${rows.length}`;
  };
  search.addEventListener("input", filter);
  setting.addEventListener("change", filter);
  if (search.value || setting.value) filter(); // what the browser kept from an earlier visit
}

// Commands

for (const button of document.querySelectorAll("button[data-copy]")) {
  button.addEventListener("click", async () => {
    await copy(button.dataset.copy);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}

async function copy(text) {
  if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea"); // a page from disk has no clipboard
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
