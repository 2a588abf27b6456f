// A browser that does what it is told: one JSON command a line on stdin, one JSON answer a line on stdout.
// `browser.mjs BASE_URL CHROMIUM [PASSWORD]`, the password for when the browser would ask for one.
// What goes wrong on the pages meanwhile is collected, see `problems`.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const require = createRequire(process.env.NODE_HOME + "/");
const { chromium } = require("playwright-core");
const [base, executablePath, password] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
const page = await browser.newPage({
  viewport: { width: 900, height: 900 },
  httpCredentials: password && { username: "operator", password },
});
const problems = [];
const asked = {};

page.on("console", (message) => {
  // A sidecar that is away, or an engine that is not ready, is an answer and not a fault of the page.
  if (message.type() === "error" && !/^Failed to load resource/.test(message.text())) problems.push(`console: ${message.text()}`);
});
page.on("pageerror", (error) => problems.push(`error: ${error}`));
page.on("request", (request) => {
  const path = new URL(request.url()).pathname;
  asked[path] = (asked[path] ?? 0) + 1;
  if (!request.url().startsWith(base) && !/^(data|blob):/.test(request.url())) problems.push(`foreign: ${request.url()}`);
});
await page.exposeFunction("reportViolation", (text) => problems.push(`policy: ${text}`));
await page.addInitScript(() =>
  document.addEventListener("securitypolicyviolation", (event) => window.reportViolation(`${event.violatedDirective} ${event.blockedURI}`)));

const commands = {
  open: ({ path }) => page.goto(base + path, { waitUntil: "load" }),
  look: async ({ width, height, scheme }) => {
    await page.setViewportSize({ width, height });
    await page.emulateMedia({ colorScheme: scheme });
  },
  // Wait until the element's text matches.
  text: async ({ selector, matches, seconds = 30 }) => {
    const found = page.locator(selector).filter({ hasText: new RegExp(matches) }).first();
    await found.waitFor({ timeout: seconds * 1000 });
    return found.textContent();
  },
  click: ({ selector }) => page.locator(selector).first().click({ timeout: 30000 }),
  choose: ({ selector, label }) => page.locator(selector).first().selectOption({ label }, { timeout: 30000 }),
  fill: ({ selector, value }) => page.locator(selector).first().fill(value, { timeout: 30000 }),
  evaluate: ({ expression }) => page.evaluate(expression),
  shoot: ({ file }) => page.screenshot({ path: file, animations: "disabled" }).then(() => null),
  axe: async () => {
    await page.evaluate(require("axe-core").source);
    const { violations } = await page.evaluate(() => window.axe.run());
    return violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html).join(" ")}`);
  },
  // From now on this is the answer at the path: a JSON body, or a broken connection without one.
  answer: async ({ path, body, status = 200 }) => {
    await page.unroute(base + path);
    await page.route(base + path, (route) => (body === undefined ? route.abort() : route.fulfill({ status, json: body })));
  },
  // As if the tab were put behind another one, or brought back.
  hide: ({ hidden }) =>
    page.evaluate((value) => {
      Object.defineProperty(document, "hidden", { configurable: true, get: () => value });
      document.dispatchEvent(new Event("visibilitychange"));
    }, hidden),
  // Time stands still until it is let pass.
  clock: () => page.clock.install().then(() => null),
  pass: ({ seconds }) => page.clock.runFor(seconds * 1000).then(() => null),
  asked: ({ path }) => asked[path] ?? 0,
  problems: () => problems.splice(0),
};

for await (const line of createInterface({ input: process.stdin })) {
  const { do: name, ...options } = JSON.parse(line);
  let answer;
  try {
    answer = { ok: (await commands[name](options)) ?? null };
  } catch (error) {
    answer = { error: String(error) };
  }
  if (name === "open" && answer.ok) answer.ok = null;
  process.stdout.write(JSON.stringify(answer) + "\n");
}
await browser.close();
