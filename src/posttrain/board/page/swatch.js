// The colours of curves, and short lines in them beside the names of runs.

import {el} from "./dom.js";

// A canvas keeps the colours that it was drawn in.
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const canvas of document.querySelectorAll(".swatch")) drawSwatch(canvas);
});

/** Colour of a custom property as it is now, light or dark. */
export const colourOf = (name) =>
  getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** A short line in the colour and the dash of a curve. */
export function swatch(colour, dash) {
  const canvas = el("canvas", {
    class: "swatch",
    width: 44,
    height: 20,
    "aria-hidden": "true",
    "data-colour": colour,
    "data-dash": dash.join(" "),
  });
  drawSwatch(canvas);
  return canvas;
}

function drawSwatch(canvas) {
  const pen = canvas.getContext("2d");
  pen.setTransform(2, 0, 0, 2, 0, 0);
  pen.clearRect(0, 0, 22, 10);
  pen.strokeStyle = colourOf(canvas.dataset.colour);
  pen.lineWidth = 3;
  pen.setLineDash(canvas.dataset.dash.split(" ").filter(Boolean).map(Number));
  pen.beginPath();
  pen.moveTo(0, 5);
  pen.lineTo(22, 5);
  pen.stroke();
}
