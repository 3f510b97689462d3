// Shows pages in headless Chromium: node check.mjs CHROMIUM; it reads requests as lines of JSON, and answers each so.
// A request may have: open, an address; unfold, whether to unfold the description; picture, a file to write.
// The answer is what the page shows then; or error, why the request failed.
import readline from "node:readline";
import { chromium } from "playwright-core";

const CARD = '[data-testid="experiment-view-compare-runs-card"]';

// Runs in the page. A chart's lines are those that its graph library has been given with more than one point, by the
// name of their group or run; a line is there more than once, as its band and the line under the mouse are too.
function look(card) {
  const read = (element) => element.innerText.trim();
  return {
    text: document.body.innerText,
    charts: [...document.querySelectorAll(".js-plotly-plot")].map((plot) => ({
      title: plot.closest(card)?.innerText.split("\n")[0] ?? "",
      lines: [...new Set(plot.data.filter((t) => t.type === "scatter" && t.uuid && t.y.length > 1).map((t) => t.uuid))],
      drawn: [...plot.querySelectorAll(".scatterlayer .trace path.js-line")].filter((p) => p.getAttribute("d")).length,
      bars: plot.querySelectorAll(".barlayer .point").length,
    })),
    tables: [...document.querySelectorAll("table")].map((table) =>
      [...table.rows].map((row) => [...row.cells].map(read))),
    links: [...document.querySelectorAll("a")].map((link) => [read(link), link.getAttribute("href") ?? ""]),
  };
}

async function answer(page, { open, unfold, picture }) {
  if (open) {
    await page.goto("about:blank"); // an address that differs only after # would not load the page again
    await page.goto(open);
  }
  if (unfold) await page.locator('[data-testid="experiment-metadata-editor-edit-button"] + button').click();
  const seen = await page.evaluate(look, CARD);
  const inner = await Promise.all(page.frames().slice(1).map((frame) => frame.evaluate(() => document.body.innerText)));
  if (picture) await page.screenshot({ path: picture });
  return { ...seen, url: page.url(), frames: inner };
}

const browser = await chromium.launch({ executablePath: process.argv[2], args: ["--no-sandbox"] });
try {
  const page = await browser.newPage({ viewport: { width: 1440, height: 1100 } });
  const errors = [];
  page.on("pageerror", (error) => errors.push(error.message));
  // MLflow opens a panel for chats at the first visit, which takes a quarter of the window.
  await page.addInitScript(() => {
    if (location.protocol === "http:") localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
  });
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const found = await answer(page, JSON.parse(line)).catch((error) => ({ error: error.message }));
    console.log(JSON.stringify({ ...found, errors: errors.splice(0) }));
  }
} finally {
  await browser.close();
}
