// Pictures and clips that go with a request, where the model takes them: drop, paste or choose, look at them, remove them.

import { t } from "./words.js";

const box = document.getElementById("media");
const shape = document.getElementById("auto-size");
const ACCEPT = { image: "image/png,image/jpeg,image/webp", video: "video/mp4,video/quicktime,video/webm" };
let slots = []; // {name, kind, input, show}
let onChange = () => {};

export function build(media, changed) {
  onChange = changed;
  for (const slot of slots) slot.show(null);
  slots = Object.entries(media ?? {}).map(([name, about]) => slot(name, about));
  box.replaceChildren(...slots.map(({ item }) => item));
  box.hidden = slots.length === 0;
  tell();
}

function slot(name, about) {
  const item = document.getElementById("medium-template").content.firstElementChild.cloneNode(true);
  const input = item.querySelector("input");
  const label = t(about.label);
  input.id = input.name = name;
  input.accept = ACCEPT[about.kind];
  input.required = about.required;
  item.querySelector("label").htmlFor = name;
  item.querySelector(".name").textContent = about.required ? t("{label} (needed)", { label }) : label;
  item.querySelector(".help").textContent = t(about.help);
  input.setAttribute("aria-describedby", (item.querySelector(".help").id = `${name}-help`));
  const made = { name, kind: about.kind, input, item, file: null };
  made.show = (file) => show(made, file, label);
  input.addEventListener("change", () => input.files.length && made.show(input.files[0]));
  const remove = item.querySelector(".remove");
  remove.setAttribute("aria-label", t("Remove: {label}", { label }));
  remove.addEventListener("click", () => { made.show(null); input.focus(); });
  return made;
}

function show(slot, file, label) {
  const view = slot.item.querySelector(".view");
  const old = view.firstElementChild;
  if (old) URL.revokeObjectURL(old.src);
  view.replaceChildren();
  slot.file = file;
  slot.input.value = "";
  slot.input.removeAttribute("aria-invalid");
  if (file) {
    const element = document.createElement(slot.kind === "image" ? "img" : "video");
    if (slot.kind === "image") element.alt = `${label}: ${file.name}`;
    else Object.assign(element, { muted: true, loop: true, autoplay: true, playsInline: true, ariaLabel: `${label}: ${file.name}` });
    element.src = URL.createObjectURL(file);
    view.append(element);
  }
  slot.item.classList.toggle("filled", Boolean(file));
  slot.item.querySelector(".remove").hidden = !file;
  slot.item.querySelector(".file").textContent = file ? file.name : t("Drop, paste or choose");
  tell();
}

function tell() {
  document.getElementById("auto-size-field").hidden = !files().length;
  onChange(isAuto());
}

shape.addEventListener("change", tell);

// Whether the video takes its shape from what was given.
export const isAuto = () => shape.checked && files().length > 0;

// [name, File] of what was chosen.
export const files = () => slots.filter(({ file }) => file).map(({ name, file }) => [name, file]);

// Files go where they were dropped if they fit there, else to the first place for their kind that is free.
function take(list, wanted) {
  let taken = false;
  for (const file of list) {
    const kind = file.type.startsWith("video/") ? "video" : "image";
    const fit = slots.filter((slot) => slot.kind === kind);
    const target = fit.find((slot) => slot === wanted) ?? fit.find((slot) => !slot.file) ?? fit[0];
    target?.show(file);
    taken ||= Boolean(target);
  }
  return taken;
}

const holdsFiles = (event) => slots.length > 0 && [...event.dataTransfer.types].includes("Files");

// Anywhere on the page: a browser would open a file that misses its place.
document.addEventListener("dragover", (event) => {
  if (!holdsFiles(event)) return;
  event.preventDefault();
  box.classList.add("over");
});
document.addEventListener("dragleave", (event) => event.relatedTarget ?? box.classList.remove("over"));
document.addEventListener("drop", (event) => {
  if (!holdsFiles(event)) return;
  event.preventDefault();
  box.classList.remove("over");
  take(event.dataTransfer.files, slots.find(({ item }) => item.contains(event.target)));
});
document.addEventListener("paste", (event) => {
  if (take(event.clipboardData.files)) event.preventDefault();
});
