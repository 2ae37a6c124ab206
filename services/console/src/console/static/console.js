// Makes the pages live: on a change the page is fetched again and the parts marked `data-live` are replaced.
// Without this script the pages work all the same; they then reload themselves now and then.
"use strict";

const indicator = document.getElementById("live");
const announcer = document.getElementById("announce");
const words = {
  receiving: "receiving", complete: "complete", queued: "queued", running: "running", generated: "draft ready",
  delivered: "delivered", skipped: "skipped", failed: "failed", parked: "parked",
};

// The server writes UTC; people read their own time.
function localize(root) {
  const day = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });
  const time = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
  const today = day.format(new Date());
  for (const element of root.querySelectorAll("time")) {
    const at = new Date(element.dateTime);
    const date = day.format(at);
    element.title = element.dateTime;
    element.textContent = (date === today ? "" : date + ", ") + time.format(at);
  }
}

const shown = new Map(); // what the server sent last, which a broken image or opened details no longer look like

function replace(old, fresh) {
  const sent = fresh.innerHTML;
  if ((shown.get(old.id) ?? old.innerHTML) === sent) return;
  shown.set(old.id, sent);
  // Whoever reads with the keyboard stays where they are, and what they opened stays open.
  const focused = old.contains(document.activeElement) ? document.activeElement : null;
  const where = focused && (focused.id ? "#" + CSS.escape(focused.id) : focused.getAttribute("href") && `[href="${CSS.escape(focused.getAttribute("href"))}"]`);
  const open = [...old.querySelectorAll("details")].map((details) => details.open);
  old.replaceChildren(...fresh.childNodes);
  old.querySelectorAll("details").forEach((details, place) => { details.open = open[place] || false; });
  if (where) old.querySelector(where)?.focus({ preventScroll: true });
}

let running = false;
let again = false;

async function refresh() {
  if (running) { again = true; return; }
  running = true;
  try {
    const answer = await fetch(location.href, { headers: { accept: "text/html" } });
    if (answer.ok) {
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      localize(page);
      for (const old of document.querySelectorAll("[data-live]")) {
        const fresh = page.getElementById(old.id);
        if (fresh) replace(old, fresh);
      }
      document.title = page.title;
    }
  } catch {
    show("waiting"); // the event stream reconnects by itself, and a reconnect refreshes
  } finally {
    running = false;
    if (again) { again = false; setTimeout(refresh, 300); }
  }
}

function show(state) {
  indicator.hidden = false;
  indicator.dataset.state = state;
  indicator.textContent = state === "live" ? "Live" : "Reconnecting";
}

function listen() {
  const source = new EventSource("/api/events");
  const study = document.querySelector("[data-study]")?.dataset.study;
  source.addEventListener("hello", () => { show("live"); refresh(); });
  source.addEventListener("study", (message) => {
    const change = JSON.parse(message.data);
    if (study && change.study_instance_uid !== study) return;
    announcer.textContent = `Study ${change.accession_number || "without accession number"}: ${words[change.state] || change.state}`;
    refresh();
  });
  source.addEventListener("error", () => {
    show("waiting");
    // A refused stream (too many pages listen) is closed for good by the browser: ask again later.
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 30000);
  });
  addEventListener("pagehide", () => source.close(), { once: true });
  addEventListener("pageshow", (event) => { if (event.persisted) listen(); }, { once: true });
}

addEventListener("keydown", (event) => {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.tagName || "");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    const field = document.querySelector("[data-focus-key='/']");
    if (field) { event.preventDefault(); field.focus(); field.select(); }
  }
});

// An image that cannot be shown says so; its own address says why.
addEventListener("error", (event) => {
  const film = event.target instanceof HTMLImageElement && event.target.closest(".film");
  if (film) { film.classList.add("broken"); event.target.replaceWith("This image cannot be shown. Open it to see why."); }
}, true);
for (const image of document.querySelectorAll(".film img")) {
  if (image.complete && !image.naturalWidth) image.dispatchEvent(new Event("error"));
}

localize(document);
for (const part of document.querySelectorAll("[data-live]")) shown.set(part.id, part.innerHTML);
listen();
