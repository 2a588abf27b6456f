// What both client programs of Node.js share; the orders and answers of `stories.py`.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

// The packages lie in another directory than the programs: in NODE_HOME.
const require = createRequire(process.env.NODE_HOME + "/");

export const MODEL = "/models/tiny-qwen2";
export const QUESTION = "你好，请自我介绍一下";
export const CITY = {
  type: "object",
  properties: { city: { type: "string", description: "The city's name" } },
  required: ["city"],
};

export const load = (name) => import(pathToFileURL(require.resolve(name)).href);
export const version = (name) => JSON.parse(readFileSync(`${process.env.NODE_HOME}/node_modules/${name}/package.json`)).version;

export function raised(error) {
  const classes = [];
  for (let kind = Object.getPrototypeOf(error); kind; kind = Object.getPrototypeOf(kind)) classes.push(kind.constructor.name);
  return {
    raised: classes[0],
    name: error.name,
    classes,
    status: error.status ?? error.statusCode ?? null,
    code: error.code ?? null,
    message: String(error.message ?? error),
    cause: error.cause ? String(error.cause.message ?? error.cause) : null,
  };
}

export async function serve(stories) {
  for await (const line of createInterface({ input: process.stdin })) {
    const { story, ...order } = JSON.parse(line);
    let told;
    try {
      told = await stories[story](order);
    } catch (error) {
      told = raised(error);
    }
    process.stdout.write(JSON.stringify(told) + "\n");
  }
}
