// The page: submits, watches running jobs, shows finished videos.

import * as api from "./api.js";
import * as form from "./form.js";
import * as gallery from "./gallery.js";
import * as media from "./media.js";
import * as stream from "./stream.js";
import * as words from "./words.js";
import { t } from "./words.js";

const $ = (id) => document.getElementById(id);
const PAGE = 24;
const watched = new Map(); // job id -> {item, stop}
let oldest = null, more = false;

function announce(text) {
  $("status").textContent = text;
}

// --- theme

function setUpTheme() {
  const root = document.documentElement;
  const saved = localStorage.getItem("wan-theme");
  if (saved) root.dataset.theme = saved;
  $("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    localStorage.setItem("wan-theme", root.dataset.theme);
  });
}

// --- API key

function askForKey() {
  $("key").hidden = false;
  const dialog = $("key-dialog");
  if (!dialog.open) dialog.showModal();
}

function setUpKey() {
  $("key").hidden = !api.hasKey();
  $("key").addEventListener("click", askForKey);
  $("key-dialog").addEventListener("close", () => {
    if ($("key-dialog").returnValue !== "ok") return;
    api.setKey($("key-input").value);
    start();
  });
}

// --- running jobs

function seconds(value) {
  if (value >= 90) return t("{n} min", { n: Math.round(value / 60) });
  return t("{n} s", { n: Math.max(1, Math.round(value)) });
}

function describe(job) {
  const left = job.eta_seconds ? t(", about {time} left", { time: seconds(job.eta_seconds) }) : "";
  if (job.status === "failed") return t("Failed: {reason}", { reason: job.error?.message ?? t("no reason given") });
  if (job.status === "cancelled") return t("Cancelled");
  if (job.cancel_requested) return t("Stopping…");
  if (job.status === "queued") return t("Waiting, position {place}", { place: job.queue_position ?? "?" }) + left;
  if (job.phase === "decode" || job.phase === "encode") return t("Finishing the video…");
  return job.step ? t("Step {step} of {steps}", job) + left : t("Starting…");
}

async function draw(item, job) {
  item.querySelector(".state").textContent = describe(job);
  const bar = item.querySelector(".bar");
  bar.setAttribute("aria-valuenow", job.progress);
  bar.firstElementChild.style.width = `${job.progress}%`;
  item.querySelector(".cancel").disabled = job.cancel_requested;
  if (job.stream_url && stream.canPlay() && !item.dataset.streams) {
    item.dataset.streams = "yes";
    play(item, job);
  }
  const image = item.querySelector("img");
  if (!job.preview_url || !image) return;
  const url = await api.mediaUrl(job.preview_url).catch(() => null);
  if (!url) return;
  if (image.src.startsWith("blob:")) URL.revokeObjectURL(image.src);
  image.src = url;
  image.hidden = false;
}

// The frames that are decoded, in the place of the preview, while the rest still is.
function play(item, job) {
  const image = item.querySelector("img"), video = document.createElement("video");
  Object.assign(video, { muted: true, autoplay: true, playsInline: true });
  video.setAttribute("aria-label", t("Frames so far of {prompt}", job));
  video.addEventListener("loadeddata", () => image.replaceWith(video));
  stream.play(video, job.stream_url, watched.get(job.id)?.signal).catch(() => {}); // then the preview stays
}

function follow(job) {
  if (watched.has(job.id)) return;
  const item = $("job-template").content.firstElementChild.cloneNode(true);
  item.dataset.id = job.id;
  item.querySelector(".prompt").textContent = job.prompt;
  item.querySelector(".bar").setAttribute("aria-label", t("Progress of {prompt}", job));
  item.querySelector(".cancel").addEventListener("click", () => cancel(job.id, item));
  $("jobs").prepend(item);
  $("jobs-section").hidden = false;
  const control = new AbortController();
  watched.set(job.id, { item, signal: control.signal, stop: () => control.abort() });
  draw(item, job);
  api.watch(job.id, (update) => onUpdate(item, update), control.signal).catch(() => drop(job.id));
}

function onUpdate(item, job) {
  draw(item, job);
  if (job.status === "completed") {
    drop(job.id);
    gallery.add(job, true);
    announce(t("Video finished: {prompt}", job));
  } else if (job.status === "failed" || job.status === "cancelled") {
    item.classList.add("failed");
    const button = item.querySelector(".cancel");
    const close = button.cloneNode();
    close.disabled = false;
    close.textContent = t("Dismiss");
    close.addEventListener("click", () => drop(job.id));
    button.replaceWith(close);
    announce(describe(job));
  }
}

function drop(id) {
  const entry = watched.get(id);
  if (!entry) return;
  watched.delete(id);
  entry.stop();
  entry.item.remove();
  $("jobs-section").hidden = watched.size === 0;
}

async function cancel(id, item) {
  item.querySelector(".cancel").disabled = true;
  try {
    onUpdate(item, await api.post(`v1/videos/${id}/cancel`));
  } catch (error) {
    if (error.status !== 409) report(error);
  }
}

// --- gallery

async function loadMore() {
  const page = await api.getJson(`v1/videos?limit=${PAGE}${oldest ? `&after=${oldest}` : ""}`);
  for (const job of page.data) {
    if (["completed", "failed", "cancelled"].includes(job.status)) gallery.add(job);
    else follow(job);
  }
  oldest = page.last_id ?? oldest;
  more = page.has_more;
  $("more").hidden = !more;
}

// One after the other, also when several ask for it.
let loading = Promise.resolve();
const loadAll = () => (loading = loading.catch(() => {}).then(async () => { while (more) await loadMore(); }));

// --- form

function report(error) {
  if (error.status === 401) return askForKey();
  form.showError(error);
}

async function submit(event) {
  event?.preventDefault();
  form.showError(null);
  $("submit").disabled = true;
  try {
    const shape = media.isAuto() ? { size: "auto" } : {};
    const job = await api.create({ ...form.values(), ...shape }, media.files());
    follow(job);
    announce(t("Submitted"));
  } catch (error) {
    report(error);
  } finally {
    $("submit").disabled = false;
  }
}

async function start() {
  try {
    const models = await api.getJson("v1/models");
    $("model").textContent = models.data[0].id;
    form.build(models.data[0]);
    media.build(models.data[0].media, form.lockSize);
    words.translate($("form"));
    gallery.describe(models.data[0].limits);
    oldest = null;
    await loadMore();
    document.body.dataset.ready = "yes";
  } catch (error) {
    report(error);
  }
}

words.setUp($("language"));
gallery.setUp({ report, announce, loadAll });
setUpTheme();
setUpKey();
$("form").addEventListener("submit", submit);
$("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit(event);
});
$("more").addEventListener("click", () => loadMore().catch(report));
start();
