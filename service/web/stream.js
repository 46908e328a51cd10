// The frames of a job whose later ones are still decoded: a fragmented MP4, shown as it arrives. fetch and not a plain `src`,
// because that sends no key and waits for more than a small video has.

import { call } from "./api.js";

export const canPlay = () => "MediaSource" in window;

const event = (target, name) => new Promise((resolve) => target.addEventListener(name, resolve, { once: true }));

// Plays until the last frame or the signal; an error says that nothing can be shown.
export async function play(video, path, signal) {
  const source = new MediaSource();
  const url = URL.createObjectURL(source);
  video.src = url;
  await event(source, "sourceopen");
  URL.revokeObjectURL(url);
  const reader = (await call(path, { signal })).body.getReader();
  let bytes = new Uint8Array(), buffer = null;
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    bytes = joined(bytes, value);
    const type = buffer ? null : typeOf(bytes);
    if (type) buffer = source.addSourceBuffer(type);
    if (!buffer) continue;
    buffer.appendBuffer(bytes);
    await event(buffer, "updateend");
    bytes = new Uint8Array();
  }
  if (source.readyState === "open") source.endOfStream();
}

function joined(first, second) {
  const both = new Uint8Array(first.length + second.length);
  both.set(first);
  both.set(second, first.length);
  return both;
}

// H.264 names profile and level after `avcC` and a version; null before they are there.
function typeOf(bytes) {
  const name = [..."avcC"].map((letter) => letter.charCodeAt(0));
  const at = bytes.findIndex((_, i) => name.every((letter, k) => bytes[i + k] === letter));
  if (at < 0 || at + 8 > bytes.length) return null;
  const hex = [...bytes.subarray(at + 5, at + 8)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return `video/mp4; codecs="avc1.${hex}"`;
}
