"use strict";
const root = document.documentElement;
root.classList.add("js");
const said = document.getElementById("said");

// The theme: the system's until the button says otherwise; remembered where the browser lets us.
const theme = document.getElementById("theme");
const systemDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);
const label = () => { theme.textContent = isDark() ? "Switch to light" : "Switch to dark"; };
try { if (localStorage.theme) root.dataset.theme = localStorage.theme; } catch { /* storage is denied */ }
theme.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try { localStorage.theme = root.dataset.theme; } catch { /* storage is denied */ }
  label();
});
systemDark.addEventListener("change", label);
label();

// Sorting: ascending, descending, as it was. Rows without a value stay last. The reference rows do not move.
for (const table of document.querySelectorAll(".screen table.values")) {
  const body = table.querySelector("tbody.sortable");
  const original = [...body.rows];
  const heads = [...table.querySelectorAll(".heads th")];
  const after = { none: "ascending", ascending: "descending", descending: "none" };
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const order = after[head.getAttribute("aria-sort")];
    for (const other of heads) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", order);
    const sign = order === "descending" ? -1 : 1;
    const compare = (a, b) => {
      if (column === 0) return sign * a.cells[0].textContent.localeCompare(b.cells[0].textContent);
      const [x, y] = [a, b].map((row) => row.cells[column].dataset.v);
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
      return sign * (x - y);
    };
    body.append(...(order === "none" ? original : [...original].sort(compare)));
    const name = head.textContent.trim();
    said.textContent = order === "none" ? "Order as it was" : `Sorted by ${name}, ${order}`;
  }));
}

// Class by class: one strategy at a time.
for (const select of document.querySelectorAll("select.choose")) {
  const show = () => {
    for (const option of select.options) document.getElementById(option.value).hidden = !option.selected;
  };
  select.addEventListener("change", show);
  show();
}

// Titles, shown on focus too, and at once; they move with what is scrolled. Escape hides them.
const tip = document.getElementById("tip");
let told = null;
const place = () => {
  if (!told) return;
  const at = told.getBoundingClientRect();
  const own = tip.getBoundingClientRect();
  const below = at.bottom + 8 + own.height < innerHeight;
  tip.style.top = `${below ? at.bottom + 8 : Math.max(4, at.top - own.height - 8)}px`;
  tip.style.left = `${Math.max(8, Math.min(at.left, innerWidth - own.width - 8))}px`;
};
const hide = () => { told = null; tip.hidden = true; };
for (const element of document.querySelectorAll("button[title], a[title]")) {
  const text = element.title;
  element.removeAttribute("title");
  const show = () => {
    told = element;
    tip.textContent = text;
    tip.hidden = false;
    place();
  };
  element.addEventListener("focus", show);
  element.addEventListener("mouseenter", show);
  element.addEventListener("blur", hide);
  element.addEventListener("mouseleave", hide);
}
addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
addEventListener("scroll", place, { capture: true, passive: true });
