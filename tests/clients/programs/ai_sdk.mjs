// The Vercel AI SDK with its provider for compatible servers; see `stories.py`.
import { CITY, MODEL, QUESTION, load, raised, serve, version } from "./stories.mjs";

const { generateText, jsonSchema, streamText, tool } = await load("ai");
const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
const tools = { get_weather: tool({ description: "Today's", inputSchema: jsonSchema(CITY) }) };

// The SDK tells of errors on the console too, which would be taken for an answer.
console.log = console.error;

const of = (url, { key = "unused", model = MODEL, headers } = {}) =>
  createOpenAICompatible({ name: "wings", baseURL: `${url}/v1`, apiKey: key, headers, includeUsage: true })(model);

const told = ({ text, finishReason, usage }) => ({
  text,
  finish: finishReason,
  prompt_tokens: usage.inputTokens,
  completion_tokens: usage.outputTokens,
});

await serve({
  about: () => ({ ai: version("ai"), "@ai-sdk/openai-compatible": version("@ai-sdk/openai-compatible"), node: process.version }),

  whole: async ({ url, key, model, content = QUESTION, max_tokens, temperature }) =>
    told(await generateText({ model: of(url, { key, model }), prompt: content, maxRetries: 0, maxOutputTokens: max_tokens, temperature })),

  streamed: async ({ url, model, content = QUESTION, max_tokens, temperature }) => {
    const result = streamText({ model: of(url, { model }), prompt: content, maxRetries: 0, maxOutputTokens: max_tokens, temperature });
    let text = "";
    for await (const piece of result.textStream) text += piece;
    return told({ text, finishReason: await result.finishReason, usage: await result.usage });
  },

  tool: async ({ url }) => {
    const { toolCalls: [call], finishReason } = await generateText({ model: of(url), prompt: QUESTION, tools, maxRetries: 0 });
    return { name: call.toolName, arguments: call.input, finish: finishReason };
  },

  tool_streamed: async ({ url }) => {
    const result = streamText({ model: of(url), prompt: QUESTION, tools, maxRetries: 0 });
    const [call] = await result.toolCalls;
    return { name: call.toolName, arguments: call.input, finish: await result.finishReason };
  },

  // Where a user of `streamText` may look: its stream of parts, its stream of text, its call-back, its promises.
  cut: async ({ url, read = "parts", extra = {} }) => {
    let text = "", called = null, part = null, thrown = null;
    const result = streamText({
      model: of(url),
      prompt: QUESTION,
      maxRetries: 0,
      providerOptions: { wings: extra },
      onError: ({ error }) => (called ??= error),
    });
    try {
      if (read === "text") for await (const piece of result.textStream) text += piece;
      else
        for await (const one of result.fullStream) {
          if (one.type === "text-delta") text += one.text;
          if (one.type === "error") part = one.error;
        }
    } catch (error) {
      thrown = error;
    }
    const seen = thrown ?? part ?? called;
    return {
      text,
      ...(seen ? raised(seen) : { raised: null }),
      part: part && String(part.message ?? JSON.stringify(part)),
      seen_in: Object.entries({ loop: thrown, part, call_back: called }).filter(([, error]) => error).map(([name]) => name),
      finish: await result.finishReason.then((reason) => reason, (error) => `rejected: ${error.name}`),
    };
  },

  leave: async ({ url, extra = {} }) => {
    const controller = new AbortController();
    const result = streamText({
      model: of(url),
      prompt: QUESTION,
      maxRetries: 0,
      providerOptions: { wings: extra },
      abortSignal: controller.signal,
    });
    let number = 0;
    for await (const _ of result.textStream) if (++number === 3) controller.abort();
    return { left: true };
  },

  // A time-out of the user's own, before the engine has said anything.
  give_up: async ({ url }) => {
    await generateText({ model: of(url), prompt: QUESTION, maxRetries: 0, abortSignal: AbortSignal.timeout(1500) });
    return { raised: null };
  },

  // As the client comes: it tries again by itself.
  patient: async ({ url, request_id }) => {
    const model = of(url, { headers: { "X-Request-Id": request_id } });
    return { text: (await generateText({ model, prompt: QUESTION })).text };
  },
});
