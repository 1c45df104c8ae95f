// Opens run folders of `attn` with transformers.js: configuration and tokenizer, whose ids for a text are printed.
//
//     npm i --ignore-scripts @huggingface/transformers
//     node open_run.mjs "a text" RUN ...
//
// Its models need an ONNX file beside them, which `optimum-cli export onnx --model RUN RUN/onnx` makes (untried).
import path from 'node:path';
import { AutoConfig, AutoTokenizer, env } from '@huggingface/transformers';

const [text, ...runs] = process.argv.slice(2);
env.allowRemoteModels = false;
for (const run of runs) {
  const folder = path.resolve(run);
  env.localModelPath = path.dirname(folder) + '/';
  const name = path.basename(folder);
  const config = await AutoConfig.from_pretrained(name);
  const tokenizer = await AutoTokenizer.from_pretrained(name);
  const ids = tokenizer.encode(text);
  console.log(`${name}: ${config.model_type}, ids ${JSON.stringify(ids)}, back ${JSON.stringify(tokenizer.decode(ids))}`);
}
