// The gallery of one's own videos: cards that load what is looked at, filters, comparison, all of them as one file.

import * as api from "./api.js";
import * as form from "./form.js";
import { t } from "./words.js";
import { zip } from "./zip.js";

const $ = (id) => document.getElementById(id);
const cards = new Map(); // job id -> {job, item}
let settings = []; // names of the parameters, with their labels
let chosen = null; // the first of two videos to compare
let hooks; // {report, announce, loadAll}

// Files are fetched when their card comes near the window.
const near = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    near.unobserve(entry.target);
    load(entry.target, cards.get(entry.target.dataset.id)?.job);
  }
}, { rootMargin: "1200px" });

async function load(item, job) {
  if (!job?.url) return;
  try {
    const media = item.querySelector("video, img");
    const link = item.querySelector(".download");
    if (media.tagName === "VIDEO" && job.thumbnail_url) api.mediaUrl(job.thumbnail_url).then((url) => { media.poster = url; }, () => {});
    media.src = link.href = await api.mediaUrl(job.url);
  } catch (error) {
    hooks.report(error);
  }
}

// <video>, or <img> for formats that are pictures to a browser.
function player(job) {
  const picture = job.media_type?.startsWith("image/");
  const media = document.createElement(picture ? "img" : "video");
  if (picture) media.alt = job.prompt;
  else Object.assign(media, { controls: true, loop: true, muted: true, playsInline: true, preload: "metadata" }).setAttribute("aria-label", job.prompt);
  media.style.setProperty("--ratio", `${job.width} / ${job.height}`);
  return media;
}

export function add(job, first = false) {
  if (cards.has(job.id)) return;
  const item = $("video-template").content.firstElementChild.cloneNode(true);
  item.dataset.id = job.id;
  item.querySelector(".prompt").textContent = job.prompt;
  const about = item.querySelector(".about");
  if (job.status === "completed") {
    item.prepend(player(job));
    const values = { size: job.size, seconds: Number(job.seconds).toFixed(1), steps: job.steps, seed: job.seed };
    about.textContent = t("{size}, {seconds} s, {steps} steps, seed {seed}", values);
  } else {
    for (const name of [".download", ".compare"]) item.querySelector(name).remove();
    about.textContent = job.status === "failed" ? t("Failed: {reason}", { reason: job.error?.message ?? t("no reason given") }) : t("Cancelled");
    item.classList.add("unmade");
  }
  const link = item.querySelector(".download");
  if (link) link.download = job.file_name;
  item.querySelector(".again").addEventListener("click", () => form.fill(job));
  item.querySelector(".compare")?.addEventListener("click", () => choose(job.id));
  item.querySelector(".delete").addEventListener("click", () => remove(job.id));
  cards.set(job.id, { job, item });
  first ? $("gallery").prepend(item) : $("gallery").append(item);
  near.observe(item);
  filter();
}

async function remove(id) {
  const { item } = cards.get(id);
  try {
    await api.remove(`v1/videos/${id}`);
    const next = item.nextElementSibling ?? item.previousElementSibling;
    item.remove();
    cards.delete(id);
    if (chosen === id) chosen = null;
    (next?.querySelector("button, a") ?? $("prompt")).focus();
    filter();
    hooks.announce(t("Video deleted"));
  } catch (error) {
    hooks.report(error);
  }
}

// --- filters

function fits(job) {
  const wanted = $("filter-status").value, text = $("filter-text").value.trim().toLowerCase();
  const right = wanted === "all" || (wanted === "completed") === (job.status === "completed");
  return right && job.prompt.toLowerCase().includes(text);
}

function filter() {
  let count = 0;
  for (const { job, item } of cards.values()) {
    item.hidden = !fits(job);
    count += !item.hidden;
  }
  $("empty").hidden = count > 0;
  $("empty").textContent = t(cards.size && !count ? "Nothing fits the filter." : "Finished videos appear here.");
  $("count").textContent = t("{n} videos", { n: count });
  $("download-all").disabled = !shown().length;
}

const shown = () => [...cards.values()].map(({ job }) => job).filter((job) => job.url && fits(job));

// --- comparison

function choose(id) {
  const second = chosen && chosen !== id && cards.has(chosen) ? chosen : null;
  const button = (of) => cards.get(of)?.item.querySelector(".compare");
  if (second) {
    button(second).setAttribute("aria-pressed", "false");
    chosen = null;
    compare(cards.get(second).job, cards.get(id).job);
    return;
  }
  chosen = chosen === id ? null : id;
  button(id).setAttribute("aria-pressed", String(chosen === id));
  if (chosen) hooks.announce(t("Choose a second video to compare"));
}

async function compare(...jobs) {
  const players = jobs.map(player);
  $("pair").replaceChildren(...players);
  const rows = [["prompt", t("Prompt")], ...settings].filter(([name]) => asText(jobs[0][name]) !== asText(jobs[1][name]));
  $("differences").hidden = !rows.length;
  $("no-differences").hidden = rows.length > 0;
  $("differences").tBodies[0].replaceChildren(...rows.map(([name, label]) => {
    const row = document.createElement("tr"), head = document.createElement("th");
    head.scope = "row";
    head.textContent = label;
    row.append(head, ...jobs.map((job) => Object.assign(document.createElement("td"), { textContent: asText(job[name]) })));
    return row;
  }));
  $("compare-dialog").showModal();
  for (const [index, job] of jobs.entries()) players[index].src = await api.mediaUrl(job.url);
}

function asText(value) {
  if (Array.isArray(value)) return value.length ? form.adaptersText(value) : "–";
  return value ?? "–";
}

function playBoth() {
  for (const media of $("pair").querySelectorAll("video")) {
    media.currentTime = 0;
    media.play();
  }
}

// --- all of them

async function downloadAll() {
  const button = $("download-all");
  button.disabled = true;
  try {
    await hooks.loadAll();
    const jobs = shown(), files = [];
    for (const job of jobs) {
      $("count").textContent = t("Packing {n} of {all}…", { n: files.length + 1, all: jobs.length });
      files.push({ name: job.file_name, bytes: new Uint8Array(await (await api.call(job.url)).arrayBuffer()) });
    }
    const link = document.createElement("a");
    link.href = URL.createObjectURL(zip(files));
    link.download = "videos.zip";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  } catch (error) {
    hooks.report(error);
  } finally {
    button.disabled = false;
    filter();
  }
}

export function setUp(given) {
  hooks = given;
  const wider = () => hooks.loadAll().then(filter, hooks.report);
  $("filter-text").addEventListener("input", () => { filter(); wider(); });
  $("filter-status").addEventListener("change", () => { filter(); wider(); });
  $("download-all").addEventListener("click", downloadAll);
  $("play-both").addEventListener("click", playBoth);
}

export function describe(limits) {
  settings = Object.entries(limits).filter(([name, limit]) => limit.label && name !== "prompt").map(([name, limit]) => [name, t(limit.label)]);
}
