"use strict";

const tip = document.getElementById("tip");

function showTip(text, x, y) {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = Math.min(Math.max(8, x + 14), document.documentElement.clientWidth - box.width - 8);
  const above = y - box.height - 14;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${above > 8 ? above : y + 18}px`;
}

// A chart: the nearest point under the pointer; arrow keys along a series and between series.
function makeChart(svg) {
  const cursor = svg.querySelector(".cursor");
  const series = [...svg.querySelectorAll(".series")].map((group) => JSON.parse(group.dataset.points));
  let row = 0;
  let index = 0;

  function show() {
    const [x, y, text] = series[row][index];
    cursor.setAttribute("cx", x);
    cursor.setAttribute("cy", y);
    cursor.setAttribute("visibility", "visible");
    const box = svg.getBoundingClientRect();
    const scale = box.width / svg.viewBox.baseVal.width;
    showTip(text, box.left + x * scale, box.top + y * scale);
  }
  function hide() {
    cursor.setAttribute("visibility", "hidden");
    tip.hidden = true;
  }
  function nearest(rows, distance) {
    let best = Infinity;
    for (const candidate of rows) {
      series[candidate].forEach((point, number) => {
        const found = distance(point);
        if (found < best) [best, row, index] = [found, candidate, number];
      });
    }
  }

  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const scale = svg.viewBox.baseVal.width / box.width;
    const [x, y] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
    nearest(series.keys(), (point) => Math.hypot(point[0] - x, point[1] - y));
    show();
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("focus", () => svg.matches(":focus-visible") && show());
  svg.addEventListener("keydown", (event) => {
    const last = series[row].length - 1;
    const x = series[row][index][0];
    const other = (step) => nearest([(row + step + series.length) % series.length], (p) => Math.abs(p[0] - x));
    const moves = {
      ArrowLeft: () => (index = Math.max(0, index - 1)),
      ArrowRight: () => (index = Math.min(last, index + 1)),
      Home: () => (index = 0),
      End: () => (index = last),
      ArrowUp: () => other(-1),
      ArrowDown: () => other(1),
    };
    if (event.key === "Escape") hide();
    if (!(event.key in moves)) return;
    event.preventDefault();
    moves[event.key]();
    show();
  });
}

// A table: its headings sort, numbers by value.
function makeSortable(table) {
  const headings = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const number = (text) => Number(text.split(" ")[0].replaceAll(",", "").replace("−", "-"));
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const up = heading.getAttribute("aria-sort") !== "ascending";
      headings.forEach((each) => each.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const text = (row) => row.cells[column].textContent;
      const order = (one, two) =>
        number(text(one)) - number(text(two)) || text(one).localeCompare(text(two));
      const rows = [...body.rows].sort((one, two) => (up ? order(one, two) : order(two, one)));
      body.append(...rows);
    });
  });
}

// The densities of a run, moment by moment.
function makeMovie(figure) {
  const frames = JSON.parse(figure.dataset.frames);
  const [bars, potential] = [figure.querySelector(".bars"), figure.querySelector(".potential")];
  const [slider, output] = [figure.querySelector("input"), figure.querySelector("output")];
  const button = figure.querySelector("button");
  let timer = null;

  function show() {
    const [epoch, heights, line] = frames[slider.value];
    const { width, height } = figure.querySelector("svg").viewBox.baseVal;
    const floor = height - 22;
    const step = width / heights.length;
    bars.setAttribute("d", heights.map((y, i) => (y ? `M${i * step} ${floor}v${-y}h${step}v${y}z` : "")).join(""));
    potential.setAttribute("d", "M" + line.map((y, i) => `${(i + 0.5) * step} ${y}`).join("L"));
    output.textContent = `epoch ${epoch}`;
    slider.setAttribute("aria-valuetext", output.textContent);
  }
  function stop() {
    clearInterval(timer);
    timer = null;
    button.textContent = "Play";
  }
  slider.addEventListener("input", () => {
    stop();
    show();
  });
  button.addEventListener("click", () => {
    if (timer !== null) return stop();
    if (slider.value === slider.max) slider.value = 0;
    button.textContent = "Pause";
    timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      show();
      if (slider.value === slider.max) stop();
    }, 100);
  });
  show();
}

document.querySelectorAll("svg[role=application]").forEach(makeChart);
document.querySelectorAll("table.sortable").forEach(makeSortable);
document.querySelectorAll(".movie").forEach(makeMovie);
