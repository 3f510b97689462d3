// Checks a report: HTML validator, axe-core in Chromium without a network, widths; and takes pictures to look at.
// node check.mjs REPORT CHROMIUM OUT; prints a line for each failure, and exits with 1 if there is one.
import fs from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";
import axe from "axe-core";
import { HtmlValidate } from "html-validate";
import { chromium } from "playwright-core";

const [report, executable, out] = process.argv.slice(2);
const url = pathToFileURL(path.resolve(report)).href;
const MAX_BYTES = 2_000_000;
const VIEWS = [
  { name: "phone", width: 390, height: 844, media: "screen" },
  { name: "laptop", width: 1366, height: 768, media: "screen" },
  { name: "print", width: 794, height: 1123, media: "print" }, // A4 at 96 dots an inch
];
const failures = [];

function fail(text) {
  failures.push(text);
  console.log(`failed: ${text}`);
}

async function validate() {
  // The rules are those of the standard and of accessibility; how a page is formatted is left to its author.
  const validator = new HtmlValidate({
    root: true,
    extends: ["html-validate:standard", "html-validate:a11y", "html-validate:document"],
  });
  const { results } = await validator.validateFile(report);
  for (const { messages } of results) {
    for (const m of messages) fail(`html-validate: line ${m.line}:${m.column} ${m.ruleId}: ${m.message}`);
  }
}

async function look(browser, view) {
  const context = await browser.newContext({ viewport: { width: view.width, height: view.height }, offline: true });
  const page = await context.newPage();
  page.on("request", (request) => {
    if (request.url() !== url && !request.url().startsWith("data:")) fail(`${view.name}: asks for ${request.url()}`);
  });
  page.on("console", (message) => fail(`${view.name}: the console says: ${message.text()}`));
  await page.goto(url);
  await page.emulateMedia({ media: view.media });
  const { scrolls, width, large } = await page.evaluate(() => ({
    scrolls: document.documentElement.scrollWidth,
    width: document.documentElement.clientWidth,
    large: [...document.querySelectorAll("svg, pre, table")].filter(
      (e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".wide"),
    ).length,
  }));
  if (scrolls > width || large) fail(`${view.name}: the page is ${scrolls} pixels wide, the window ${width}`);
  await page.screenshot({ path: path.join(out, `${view.name}.png`) });
  await page.screenshot({ path: path.join(out, `${view.name}-whole.png`), fullPage: true });
  if (view.media === "print") {
    const cut = await page.evaluate(() =>
      [...document.querySelectorAll("svg, table, pre")].filter((e) => e.getBoundingClientRect().right > innerWidth + 1).length);
    if (cut) fail(`${view.name}: ${cut} elements are wider than the paper`);
    await page.pdf({ path: path.join(out, "print.pdf"), preferCSSPageSize: true, printBackground: true });
  }
  await page.evaluate(axe.source);
  const { violations } = await page.evaluate(() => axe.run(document, { resultTypes: ["violations"] }));
  for (const v of violations) {
    const where = v.nodes.slice(0, 3).map((n) => n.target.join(" ")).join(", ");
    fail(`${view.name}: axe-core: ${v.id}: ${v.help} (${v.nodes.length}: ${where})`);
  }
  await context.close();
}

fs.mkdirSync(out, { recursive: true });
const bytes = fs.statSync(report).size;
console.log(`${report}: ${(bytes / 1e6).toFixed(2)} MB`);
if (bytes > MAX_BYTES) fail(`the report has ${bytes} bytes, more than ${MAX_BYTES}`);
await validate();
const browser = await chromium.launch({ executablePath: executable, args: ["--no-sandbox"] });
try {
  for (const view of VIEWS) await look(browser, view);
} finally {
  await browser.close();
}
console.log(failures.length ? `${failures.length} failures` : "passed: html-validate, axe-core, widths, no requests");
console.log(`Look at the pictures in ${out}: ${VIEWS.map((v) => `${v.name}.png`).join(", ")}, print.pdf`);
process.exit(failures.length ? 1 : 0);
