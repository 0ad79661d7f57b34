// Elements and canvases: a map on its photo. Nothing here knows of sliders.
import { colour, contour, enlarge } from "./maths.js";

export function h(tag, attributes = {}, ...children) {
  const el = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) el.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) el.setAttribute(name, value);
  }
  el.append(...children);
  return el;
}

export function svg(tag, attributes, ...children) {
  const el = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) el.setAttribute(name, value);
  el.append(...children);
  return el;
}

export const button = (text, onclick) => h("button", { type: "button", onclick }, text);
export const picture = () => h("canvas", { role: "img" });
export const figure = (canvas, ...caption) => h("figure", {}, canvas, h("figcaption", {}, ...caption));

export function sheet(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas;
}

export const css = (v) => `rgb(${colour(v).join()})`;
const gradient = `linear-gradient(to right, ${Array.from({ length: 9 }, (_, i) => css(i / 8)).join(", ")})`;
export const legend = (low, high, background = gradient) =>
  h("div", { class: "gmar-legend" }, low, h("span", { class: "gmar-ramp", style: `background:${background}` }), high);

function magma(v, data, k) {
  const [r, g, b] = colour(v);
  data[k] = r;
  data[k + 1] = g;
  data[k + 2] = b;
  data[k + 3] = 255;
}

// An (R, C) map as a picture of width × height pixels; ramp(value, data, k) writes four bytes.
function colourMap(map, grid, width, height, ramp) {
  const canvas = sheet(width, height);
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  enlarge(map, grid, width, height).forEach((v, k) => ramp(v, image.data, 4 * k));
  context.putImageData(image, 0, 0);
  return canvas;
}

// The map on the grey photo, with a white line where it crosses one half, and a frame around a chosen patch. A map with
// colours of its own (ramp) gets no line.
export function paint(canvas, photo, map, opacity, { ramp = null, cursor = null } = {}) {
  const { width, height } = photo.colour;
  const [x0, y0, x1, y1] = photo.box;
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  const context = canvas.getContext("2d");
  const over = colourMap(map, photo.grid, Math.round((x1 - x0) / 2), Math.round((y1 - y0) / 2), ramp ?? magma);
  context.drawImage(photo.grey, 0, 0);
  context.globalAlpha = opacity;
  context.drawImage(over, x0, y0, x1 - x0, y1 - y0);
  context.globalAlpha = 1;
  if (!ramp) {
    const sx = (x1 - x0) / photo.C;
    const sy = (y1 - y0) / photo.R;
    context.beginPath();
    contour(map, photo.grid, (ax, ay, bx, by) => {
      context.moveTo(x0 + sx * ax, y0 + sy * ay);
      context.lineTo(x0 + sx * bx, y0 + sy * by);
    });
    context.strokeStyle = "#fff";
    context.lineWidth = 1.5;
    context.lineCap = "round";
    context.stroke();
  }
  if (cursor !== null)
    for (const [style, line] of [["#000", 5], ["#fff", 2]]) {
      context.strokeStyle = style;
      context.lineWidth = line;
      context.strokeRect(...cell(photo, cursor));
    }
}

// Patch k on the photo: x, y, width, height.
export function cell(photo, k) {
  const [x0, y0, x1, y1] = photo.box;
  const width = (x1 - x0) / photo.C;
  const height = (y1 - y0) / photo.R;
  return [x0 + width * (k % photo.C), y0 + height * Math.floor(k / photo.C), width, height];
}

// The patch under the pointer, or null.
export function patchAt(event, photo) {
  const r = event.currentTarget.getBoundingClientRect();
  const [x0, y0, x1, y1] = photo.box;
  const x = ((event.clientX - r.left) / r.width) * photo.colour.width;
  const y = ((event.clientY - r.top) / r.height) * photo.colour.height;
  const column = Math.floor(((x - x0) / (x1 - x0)) * photo.C);
  const row = Math.floor(((y - y0) / (y1 - y0)) * photo.R);
  return column >= 0 && column < photo.C && row >= 0 && row < photo.R ? row * photo.C + column : null;
}

export const place = (photo, k) =>
  `row ${Math.floor(k / photo.C) + 1} of ${photo.R}, column ${(k % photo.C) + 1} of ${photo.C}`;
