"use strict";
/* What the page does where scripts run: tables in any order, encodings to choose, charts, large pictures, music. */
const data = (id) => JSON.parse(document.getElementById(id).textContent);

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const rows = [...body.rows], first = new Map(rows.map((row, index) => [row, index]));
  const key = (row, column) => {
    let at = 0;
    for (const cell of row.cells) {
      if (column < at + cell.colSpan) {
        if (cell.classList.contains("refused")) return "";
        return (column ? cell.firstChild?.textContent || "" : cell.textContent).trim(); // the first of two numbers counts
      }
      at += cell.colSpan;
    }
    return "";
  };
  const number = (text) => {
    const found = text.replace(/,/g, "").match(/^-?\d+(\.\d+)?(e[+-]?\d+)?/i);
    return found ? parseFloat(found[0]) : null;
  };
  heads.forEach((head, column) => {
    head.tabIndex = 0;
    head.title = "sort by this column";
    head.setAttribute("aria-sort", "none");
    const sort = () => {
      const way = { none: "ascending", ascending: "descending", descending: "none" }[head.getAttribute("aria-sort")];
      for (const each of heads) each.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", way);
      const sign = way === "descending" ? -1 : 1;
      const order = (a, b) => {
        if (way === "none") return first.get(a) - first.get(b);
        const [p, q] = [key(a, column), key(b, column)], [m, n] = [number(p), number(q)];
        if (column === 0) return sign * p.localeCompare(q);
        if (m === null || n === null) return (m === null) - (n === null) || first.get(a) - first.get(b);
        return sign * (m - n) || first.get(a) - first.get(b);
      };
      body.append(...rows.sort(order));
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(); }
    });
  });
}

function chooser(holder, charts) {
  const hidden = new Set(), boxes = [];
  const apply = () => {
    for (const element of document.querySelectorAll("main [data-encoding]:not(svg *)"))
      element.hidden = hidden.has(element.dataset.encoding);
    for (const chart of charts) { chart.hidden = hidden; chart.draw(); }
  };
  const set = (box, on) => { box.checked = on; if (on) hidden.delete(box.value); else hidden.add(box.value); };
  for (const { name, colour } of data("encodings")) {
    const label = document.createElement("label"), box = document.createElement("input"), dot = document.createElement("span");
    Object.assign(box, { type: "checkbox", value: name, checked: true });
    box.onchange = () => { set(box, box.checked); apply(); };
    label.ondblclick = () => { for (const each of boxes) set(each, each === box); apply(); };
    label.title = "double-click: this one alone";
    dot.className = "dot";
    dot.style.background = colour === "#000000" ? "var(--ink)" : colour;
    label.append(box, dot, name);
    holder.append(label);
    boxes.push(box);
  }
  for (const [text, on] of [["all", true], ["none", false]]) {
    const button = document.createElement("button");
    button.textContent = text;
    button.onclick = () => { for (const box of boxes) set(box, on); apply(); };
    holder.append(button);
  }
  holder.hidden = boxes.length < 2;
}

function enlarging() {
  const dialog = document.createElement("dialog"), large = document.createElement("img");
  dialog.append(large);
  dialog.onclick = () => dialog.close();
  document.body.append(dialog);
  for (const image of document.querySelectorAll("main img:not(.printed)")) {
    image.tabIndex = 0;
    image.classList.add("enlarges");
    const open = () => { large.src = image.src; large.alt = image.alt; dialog.showModal(); };
    image.onclick = open;
    image.onkeydown = (event) => { if (event.key === "Enter") open(); };
  }
}

document.documentElement.classList.add("scripted");
window.addEventListener("load", () => {
  for (const table of document.querySelectorAll("table.sortable")) sortable(table);
  const drawn = data("charts");
  const charts = [...document.querySelectorAll("figure[data-chart]")].map((figure) => new Chart(figure, drawn[figure.dataset.chart]));
  chooser(document.getElementById("chooser"), charts);
  enlarging();
  for (const holder of document.querySelectorAll(".music")) new Music(holder, JSON.parse(holder.querySelector("script").textContent));
});
