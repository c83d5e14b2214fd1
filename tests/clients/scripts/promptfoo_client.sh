# setup
cat > promptfooconfig.yaml <<'YAML'
# It reads OPENAI_BASE_URL and OPENAI_API_KEY.
prompts: ["The capital of {{country}} is"]
providers:
  - {id: "openai:chat:demo", config: {max_tokens: 30, temperature: 0}}
  - {id: "openai:completion:demo", config: {max_tokens: 30, temperature: 0}}
  - {id: "openai:responses:demo", config: {max_output_tokens: 30, temperature: 0}}
defaultTest: {options: {provider: {embedding: "openai:embedding:minilm"}}}
tests:
  - vars: {country: France}
    assert:
      - {type: icontains, value: Paris}
      - {type: similar, value: "Paris is the capital of France.", threshold: 0.3}
YAML
# Node 22 comes with the package `node`, where yours is older.
promptfoo eval --no-cache -o results.json
# end of setup
graded() { node -e 'const at = process.argv[1]; const all = require("./results.json").results.results;
    const one = all.find((each) => each.provider.id === `openai:${at}:demo`);
    console.error(JSON.stringify(one.gradingResult)); process.exit(one.success ? 0 : 1)' "$1"; }
graded chat
echo "passed: chat"
graded completion
echo "passed: completions"
graded responses
echo "passed: responses"
echo "passed: embeddings"
