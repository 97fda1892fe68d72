"use strict";
// Draws the charts, sorts tables and copies commands. The pages can be read without it.

for (const source of document.querySelectorAll("script[data-chart]")) {
  const place = document.getElementById(source.dataset.chart);
  if (typeof vegaEmbed !== "function" || place === null) continue; // the hint stays
  const options = { actions: false, renderer: "svg" };
  vegaEmbed(place, JSON.parse(source.textContent), options).catch((error) => {
    place.textContent = `This chart cannot be drawn: ${error.message}`;
    console.error(error);
  });
}

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
