// The parameter form: fields, limits and defaults come from the server.

// What concerns the job and not the video; the rest is the model's and comes with its label and bounds.
const JOB = { priority: { label: "Priority" }, preview: { label: "Show previews" } };
let fields = [];
let adapters = []; // names

const form = document.getElementById("form");

export function build({ defaults, limits, loras }) {
  adapters = loras;
  const asked = (name) => limits[name].type !== "array" || adapters.length > 0;
  const inGroup = (group) => Object.keys(limits).filter((name) => limits[name].group === group && asked(name));
  const main = inGroup("main"), more = [...inGroup("more"), ...Object.keys(JOB)];
  fields = [...main, ...more];
  for (const [names, box] of [[main, "main-fields"], [more, "more-fields"]]) {
    const target = document.getElementById(box);
    target.replaceChildren(...names.map((name) => field(name, defaults[name], { ...limits[name], ...JOB[name] })));
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
    label.append(input, limit.label);
    box.append(label);
    return box;
  }
  label.textContent = limit.label;
  box.append(label, input);
  const text = hint(limit);
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
  if (limit.type === "array") return chooser(input, limit);
  input.type = "number";
  const whole = limit.type === "integer";
  input.inputMode = whole ? "numeric" : "decimal";
  if (limit.minimum !== undefined) input.min = limit.minimum;
  if (limit.maximum !== undefined) input.max = limit.maximum;
  input.step = whole ? (limit.step ?? limit.multipleOf ?? 1) : "any";
  input.title = limit.help;
  if (value === undefined) input.placeholder = "random";
  else input.value = value;
  return input;
}

// Adapters as text, NAME:STRENGTH,NAME, with the names to choose from.
function chooser(input, limit) {
  input.type = "text";
  input.title = limit.help;
  input.dataset.kind = "adapters";
  input.placeholder = `${adapters[0]}:0.8`;
  input.setAttribute("list", "adapters");
  document.getElementById("adapters").replaceChildren(...adapters.map((name) => new Option(name, name)));
  return input;
}

// The same text from what a job says.
export const adaptersText = (list) => list.map(({ name, strength }) => `${name}:${strength}`).join(",");

// The bounds, where they say something to a person.
function hint(limit) {
  if (limit.type === "array") return adapters.join(", ");
  return limit.maximum > Number.MAX_SAFE_INTEGER ? limit.help : limit.enum ? "" : (limit.allowed ?? "");
}

// A size that something else decides.
export function lockSize(locked) {
  for (const name of ["width", "height"]) if (form.elements[name]) form.elements[name].disabled = locked;
}

// What the caller filled in; the server checks it.
export function values() {
  const result = { prompt: form.elements.prompt.value };
  if (form.elements.negative_prompt.value) result.negative_prompt = form.elements.negative_prompt.value;
  for (const name of fields) {
    const input = form.elements[name];
    if (input.disabled) continue;
    if (name === "preview") result.preview = result.stream = input.checked;
    else if (name === "priority" && input.value === "normal") continue; // a key that may use less gets its own highest
    else if (input.tagName === "SELECT") result[name] = input.value;
    else if (input.dataset.kind === "adapters") { if (input.value.trim()) result[name] = input.value; }
    // seeds may be larger than what a JavaScript number holds; the server reads digits in a string just as well
    else if (input.value !== "") result[name] = name === "seed" ? input.value : Number(input.value);
  }
  return result;
}

export function fill(job) {
  form.elements.prompt.value = job.prompt;
  for (const name of fields) {
    if (job[name] === null || job[name] === undefined || name === "priority") continue;
    form.elements[name].value = Array.isArray(job[name]) ? adaptersText(job[name]) : job[name];
  }
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
