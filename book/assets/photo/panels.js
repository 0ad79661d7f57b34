// 'Your own photo': what this page shows beside the explorer's own panels.
import { NORMS, VARIANTS } from "./maths.js";
import { figure, h, legend, paint, picture } from "./draw.js";
import { mapAt, STEPS } from "./reading.js";

export function select(words, options, model, trait) {
  const input = h("select", {}, ...options.map((option, i) => h("option", { value: i }, option)));
  input.value = model.get(trait);
  input.addEventListener("change", () => model.set(trait, +input.value));
  return h("label", { class: "gmar-range" }, h("span", {}, words), input);
}

export function range(words, min, max, model, trait) {
  const input = h("input", { type: "range", min, max, step: 1 });
  input.value = model.get(trait);
  input.addEventListener("input", () => model.set(trait, +input.value));
  return h("label", { class: "gmar-range" }, h("span", {}, words), input);
}

// Which curve's patches are shown, and how many are gone.
export function play(el, model, photo) {
  const method = select("order by", photo.methods, model, "method");
  const step = range("steps", 0, STEPS, model, "step");
  model.on("change:step", () => (step.lastChild.value = model.get("step")));
  el.before(el.previousElementSibling?.matches(".gmar-removed") ? "" : h("div", { class: "gmar-buttons gmar-removed" }));
  el.previousElementSibling.replaceChildren(method, step);
}

// What the model has a word for, and how often it is right: what its answers are worth.
export function known({ model, labels, accuracy, image_size, bits }) {
  const right = accuracy ? ` It names ${accuracy}\u00a0% of its validation pictures right.` : "";
  return h(
    "details",
    { class: "gmar-code" },
    h("summary", {}, `What the model knows: ${labels.length} classes`),
    h(
      "p",
      {},
      `${model} sees a photo as ${image_size.join(" × ")} pixels; its weights are rounded to ${bits} bits.${right} ` +
        "A photo of something outside this list gets a wrong name, and a map for a wrong name is a map all the same.",
    ),
    h("p", {}, labels.map((label) => label.split(",")[0]).join(", ")),
  );
}

// Two classes, one method, side by side.
export function pair(model, photo) {
  const sides = [0, 1].map((t) => {
    const choice = h("select", { "aria-label": ["left class", "right class"][t] });
    const canvas = picture();
    choice.addEventListener("change", draw);
    return { canvas, choice, t, el: figure(canvas, choice) };
  });
  function draw() {
    for (const { canvas, choice, t } of sides) {
      const names = photo.target_names;
      const chosen = choice.options.length ? +choice.value : t;
      if (choice.options.length !== names.length) {
        choice.replaceChildren(...names.map((name, i) => h("option", { value: i }, name)));
        choice.value = Math.min(Math.max(chosen, names.length > t ? t : 0), names.length - 1);
      }
      const m = model.get("method");
      paint(canvas, photo, mapAt(model, photo, +choice.value, m), model.get("opacity"));
      canvas.setAttribute("aria-label", `${photo.name}: ${photo.methods[m]} for ${names[+choice.value]}`);
    }
  }
  let waiting = 0;
  const soon = () => {
    clearTimeout(waiting); // when the hand rests: the picture above must follow the slider at once
    waiting = setTimeout(draw, 100);
  };
  for (const trait of ["target", "method", "alpha", "opacity", "variant"]) model.on(`change:${trait}`, soon);
  draw();
  const two = h("div", { class: "gmar-pair" }, ...sides.map((side) => side.el));
  return h("section", { class: "gmar-two" }, h("p", {}, "Two classes, the same method"), two, legend("low", "high"));
}

// The picture with its caption and the sentence for a methods section, as a file.
export function savePicture(model, photo, about) {
  const [t, m] = [model.get("target"), model.get("method")];
  const drawn = picture();
  paint(drawn, photo, mapAt(model, photo, t, m), model.get("opacity"));
  const follows = photo.follows[m];
  const options = follows
    ? `, α = ${model.get("alpha").toFixed(2)}, ${follows[1] < 0 ? "" : VARIANTS[follows[1]]}, head weights ${NORMS[follows[0]] ?? "equal"}`
    : "";
  const lines = [
    `Why ${photo.target_names[t]}? ${photo.methods[m]}${options}`,
    `${about.model} at ${about.image_size.join(" × ")} pixels, weights in ${about.bits} bits.`,
    about.sentences[m],
  ];
  const width = Math.max(drawn.width, 480);
  const canvas = h("canvas", { width, height: 10 });
  const context = canvas.getContext("2d");
  const font = "14px sans-serif";
  context.font = font;
  const wrapped = lines.flatMap((line) => wrap(context, line, width - 24));
  canvas.height = drawn.height + 20 * wrapped.length + 20;
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, canvas.height);
  context.drawImage(drawn, (width - drawn.width) / 2, 0);
  context.font = font;
  context.fillStyle = "#000";
  wrapped.forEach((line, i) => context.fillText(line, 12, drawn.height + 24 + 20 * i));
  canvas.toBlob((blob) => {
    const stem = photo.name.replace(/\.[^.]*$/, "");
    const method = photo.calls[m].split('"')[1];
    const link = h("a", { href: URL.createObjectURL(blob), download: `${stem}.${method}.png` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  });
}

function wrap(context, text, width) {
  const lines = [""];
  for (const word of text.split(" ")) {
    const longer = `${lines.at(-1)} ${word}`.trim();
    if (context.measureText(longer).width > width && lines.at(-1)) lines.push(word);
    else lines[lines.length - 1] = longer;
  }
  return lines;
}
