// Calls of the HTTP API. An API key, if the server wants one, lives in this tab only.

let key = sessionStorage.getItem("wan-key") || "";

export const hasKey = () => key !== "";

export function setKey(value) {
  key = value.trim();
  sessionStorage.setItem("wan-key", key);
}

export class ApiError extends Error {
  constructor(status, detail, retryAfter) {
    super(detail.message);
    this.status = status;
    this.param = detail.param;
    this.retryAfter = retryAfter;
  }
}

export async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { message: "The server cannot be reached." });
  }
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  const detail = body.error?.message ? body.error : { message: `The server answered with status ${answer.status}.` };
  throw new ApiError(answer.status, detail, answer.headers.get("Retry-After"));
}

// Seeds may have more digits than a JavaScript number keeps, so they stay text. A quote inside a JSON string is escaped;
// this cannot be one.
const parse = (text) => JSON.parse(text.replace(/"seed": ?(\d+)/g, '"seed":"$1"'));
const json = async (answer) => parse(await answer.text());

export const getJson = async (path) => json(await call(path));
export const post = async (path) => json(await call(path, { method: "POST" }));
export const remove = (path) => call(path, { method: "DELETE" });

// `files`: [name, File] of pictures and clips; with these the body is a form.
export async function create(values, files = []) {
  const headers = { "Idempotency-Key": unique() };
  let body;
  if (files.length) {
    body = new FormData();
    for (const [name, value] of [...Object.entries(values), ...files]) body.append(name, value);
  } else {
    body = JSON.stringify(values);
    headers["Content-Type"] = "application/json";
  }
  return json(await call("v1/videos", { method: "POST", headers, body }));
}

// crypto.randomUUID exists on https and localhost only
function unique() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

// A URL that <img> and <video> can show; with a key the file is fetched, since those send no header.
export async function mediaUrl(path) {
  if (!key) return path;
  return URL.createObjectURL(await (await call(path)).blob());
}

// Follows a job's server-sent events; connects again when the stream breaks. Ends with the job or the signal.
export async function watch(id, onJob, signal) {
  while (!signal.aborted) {
    try {
      const answer = await call(`v1/videos/${id}/events`, { signal });
      for await (const job of events(answer.body)) {
        onJob(job);
        if (["completed", "failed", "cancelled"].includes(job.status)) return;
      }
    } catch (error) {
      if (error.name === "AbortError") return;
      if (error.status === 404) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").find((line) => line.startsWith("data: "));
      if (data) yield parse(data.slice(6));
    }
  }
}
