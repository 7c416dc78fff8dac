"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const root = document.documentElement;
  const search = $("search");
  const regions = [...document.querySelectorAll("details.region")];
  const reasons = [...document.querySelectorAll("details.reason")];
  const sections = [...document.querySelectorAll("section.found")];
  document.querySelector(".tools").hidden = false;

  // Search: every word must occur in a region's names, tensors, kinds, expression or reason.
  const plain = (text) => text.toLowerCase().replaceAll("×", "x");
  let texts;
  const index = () =>
    regions.map((region) => {
      const parts = [...region.querySelectorAll("code, i, title, .why")];
      const reason = region.closest("details.reason");
      if (reason) parts.push(reason.querySelector("summary code"));
      return plain(parts.map((part) => part.textContent).join("\n"));
    });
  let opened = null; // which reasons were open before the search
  const filter = () => {
    const words = plain(search.value).split(/\s+/).filter(Boolean);
    texts ??= index();
    let shown = 0;
    regions.forEach((region, at) => {
      const fits = words.every((word) => texts[at].includes(word));
      if (region.hidden === fits) region.hidden = !fits;
      shown += fits;
    });
    const searching = words.length > 0;
    if (searching) opened ??= reasons.map((reason) => reason.open);
    reasons.forEach((reason, at) => {
      const some = !!reason.querySelector("details.region:not([hidden])");
      reason.hidden = searching && !some;
      if (searching) reason.open = some;
      else if (opened) reason.open = opened[at];
    });
    if (!searching) opened = null;
    for (const section of sections)
      section.hidden = searching && !section.querySelector("details.region:not([hidden])");
    $("none").hidden = !searching || shown > 0;
    $("matches").textContent = searching ? `${shown} of ${regions.length}` : "";
  };
  let due = 0;
  search.addEventListener("input", () => {
    cancelAnimationFrame(due);
    due = requestAnimationFrame(filter);
  });
  const clear = () => {
    search.value = "";
    filter();
  };
  addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input, textarea, select, [contenteditable]");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      search.focus();
      search.select();
    } else if (event.key === "Escape" && (search.value || typing)) {
      clear();
      search.blur();
    }
  });
  if (!regions.length) document.querySelector("search").hidden = $("all").hidden = true;

  // A link to a name opens what the name stands in.
  const reveal = () => {
    const target = location.hash && $(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    if (target.closest("details.region[hidden]")) clear();
    for (let at = target.closest("details"); at; at = at.parentElement.closest("details"))
      at.open = true;
    target.scrollIntoView({ block: "center" });
  };
  addEventListener("hashchange", reveal);
  reveal();

  // Open all, and everything while printing.
  const every = () => [...regions, ...reasons].filter((one) => !one.hidden);
  $("all").addEventListener("click", () => {
    const open = $("all").textContent === "Open all";
    for (const one of every()) one.open = open;
    $("all").textContent = open ? "Close all" : "Open all";
  });
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = every().filter((one) => !one.open);
    for (const one of closed) one.open = true;
  });
  addEventListener("afterprint", () => {
    for (const one of closed) one.open = false;
  });

  // Theme: as the system has it, light, or dark.
  const themes = ["auto", "light", "dark"];
  const stored = () => {
    try {
      return localStorage.getItem("onnxfuse-theme");
    } catch {
      return null;
    }
  };
  const dress = (theme) => {
    if (theme === "auto") delete root.dataset.theme;
    else root.dataset.theme = theme;
    $("theme").textContent = `Theme: ${theme}`;
  };
  dress(themes.includes(stored()) ? stored() : "auto");
  $("theme").addEventListener("click", () => {
    const theme = themes[(themes.indexOf(root.dataset.theme ?? "auto") + 1) % 3];
    dress(theme);
    try {
      localStorage.setItem("onnxfuse-theme", theme);
    } catch {} // a page from a file may have no storage
  });

  // Copy a name.
  const copy = async (code, button) => {
    let done = "Copied";
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      getSelection().selectAllChildren(code);
      done = "Selected";
    }
    if (!button) return;
    button.textContent = done;
    setTimeout(() => (button.textContent = "Copy"), 1500);
  };
  const equip = (region) => {
    for (const code of region.querySelectorAll(".names li > code:not(.out)")) {
      if (code.nextElementSibling?.matches("button")) continue;
      const button = document.createElement("button");
      button.type = "button";
      button.className = "copy";
      button.textContent = "Copy";
      button.setAttribute("aria-label", `Copy ${code.textContent}`);
      code.after(button);
    }
  };
  for (const region of regions) {
    region.addEventListener("toggle", () => region.open && equip(region));
    if (region.open) equip(region);
  }
  document.addEventListener("click", (event) => {
    const item = event.target.closest(".names li");
    if (!item || !getSelection().isCollapsed) return;
    if (event.target.matches("button"))
      copy(event.target.previousElementSibling, event.target);
    else if (event.target.matches("code"))
      copy(event.target, event.target.matches(".out") ? null : item.querySelector("button"));
  });
})();
