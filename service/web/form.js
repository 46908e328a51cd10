// The parameter form: fields, limits and defaults come from the server.

const MAIN = ["width", "height", "num_frames", "steps", "seed"];
const MORE = [
  "guidance_scale", "guidance_end", "flow_shift", "sampler", "cache", "cache_threshold", "fps", "priority", "preview",
];
const LABELS = {
  width: "Width", height: "Height", num_frames: "Frames", steps: "Steps", seed: "Seed", guidance_scale: "Guidance",
  flow_shift: "Flow shift", sampler: "Sampler", cache: "Step cache", cache_threshold: "Cache threshold",
  guidance_end: "Guidance until", fps: "Frames a second",
  priority: "Priority", preview: "Show previews",
};
const FRACTIONS = new Set(["guidance_scale", "flow_shift", "cache_threshold", "guidance_end"]);

const form = document.getElementById("form");

export function build({ defaults, limits }) {
  for (const [names, box] of [[MAIN, "main-fields"], [MORE, "more-fields"]]) {
    const target = document.getElementById(box);
    target.replaceChildren(...names.map((name) => field(name, defaults[name], limits[name] ?? {})));
  }
  form.elements.priority.value = "normal";
  form.elements.preview.checked = true;
  form.elements.negative_prompt.placeholder = defaults.negative_prompt || "What the video must not show";
  form.elements.prompt.maxLength = limits.prompt.maxLength;
}

function field(name, value, limit) {
  const box = document.createElement("div");
  box.className = name === "preview" ? "field check" : "field";
  const label = document.createElement("label");
  label.htmlFor = name;
  const input = control(name, value, limit);
  input.id = input.name = name;
  if (name === "preview") {
    label.append(input, LABELS[name]);
    box.append(label);
    return box;
  }
  label.textContent = LABELS[name];
  box.append(label, input);
  const text = hint(name, limit);
  if (text) {
    const note = document.createElement("span");
    note.className = "quiet";
    note.id = `${name}-hint`;
    note.textContent = text;
    input.setAttribute("aria-describedby", note.id);
    box.append(note);
  }
  return box;
}

function control(name, value, limit) {
  if (limit.enum) {
    const select = document.createElement("select");
    select.append(...limit.enum.map((choice) => new Option(choice, choice, false, choice === value)));
    return select;
  }
  const input = document.createElement("input");
  if (name === "preview") {
    input.type = "checkbox";
    return input;
  }
  input.type = "number";
  input.inputMode = FRACTIONS.has(name) ? "decimal" : "numeric";
  if (limit.minimum !== undefined) input.min = limit.minimum;
  if (limit.maximum !== undefined) input.max = limit.maximum;
  input.step = FRACTIONS.has(name) ? "any" : name === "num_frames" ? 4 : (limit.multipleOf ?? 1);
  if (name === "seed") input.placeholder = "random";
  else input.value = value;
  return input;
}

function hint(name, limit) {
  if (name === "seed") return "same seed, same video";
  if (limit.minimum === undefined || limit.maximum === undefined) return "";
  const range = `${limit.minimum} to ${limit.maximum}`;
  if (name === "num_frames") return `4n + 1, ${range}`;
  if (name === "cache_threshold") return `0: no step is skipped; ${range}`;
  if (name === "guidance_end") return `share of the steps, ${range}`;
  return limit.multipleOf ? `multiple of ${limit.multipleOf}, ${range}` : range;
}

// What the caller filled in; the server checks it.
export function values() {
  const result = { prompt: form.elements.prompt.value };
  if (form.elements.negative_prompt.value) result.negative_prompt = form.elements.negative_prompt.value;
  for (const name of [...MAIN, ...MORE]) {
    const input = form.elements[name];
    if (name === "preview") result.preview = input.checked;
    else if (name === "priority" && input.value === "normal") continue; // a key that may use less gets its own highest
    else if (input.tagName === "SELECT") result[name] = input.value;
    // seeds may be larger than what a JavaScript number holds; the server reads digits in a string just as well
    else if (input.value !== "") result[name] = name === "seed" ? input.value : Number(input.value);
  }
  return result;
}

export function fill(job) {
  form.elements.prompt.value = job.prompt;
  for (const name of ["width", "height", "num_frames", "steps", "seed", "fps"]) form.elements[name].value = job[name];
  form.elements.prompt.focus();
}

export function showError(error) {
  const box = document.getElementById("form-error");
  for (const input of form.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
  box.hidden = !error;
  if (!error) return;
  box.textContent = error.message;
  const input = error.param && form.elements[error.param];
  if (!input) return;
  const folded = input.closest("details");
  if (folded) folded.open = true;
  input.setAttribute("aria-invalid", "true");
  input.focus();
}
