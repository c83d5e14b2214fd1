# setup
cat > config.yaml <<'YAML'
model_list:
  - model_name: "*"
    litellm_params: {model: "openai/*", api_base: os.environ/OPENAI_BASE_URL, api_key: os.environ/OPENAI_API_KEY}
YAML
export LITELLM_MASTER_KEY=sk-of-the-proxy
litellm --config config.yaml --host 127.0.0.1 --port "${PORT:=4000}" &
# end of setup
proxy=http://127.0.0.1:$PORT
curl -fsS --retry 120 --retry-delay 1 --retry-connrefused "$proxy/health/liveliness"
post() {
    curl -sS --fail-with-body "$proxy/v1/$1" -H "Authorization: Bearer $LITELLM_MASTER_KEY" \
        -H 'Content-Type: application/json' -d "$2"
}
hello='"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0, "max_tokens": 30'

post chat/completions "{\"model\": \"demo\", $hello}" | grep Paris
echo "passed: chat"
post chat/completions "{\"model\": \"demo\", \"stream\": true, $hello}" | grep '\[DONE\]'
echo "passed: stream"
post embeddings '{"model": "minilm", "input": "a lamp"}' | grep '"embedding"'
echo "passed: embeddings"
post responses '{"model": "demo", "input": "Hello.", "max_output_tokens": 20}' | grep '"output_text"'
echo "passed: responses"
post messages "{\"model\": \"demo\", $hello}" | grep Paris
echo "passed: messages"
