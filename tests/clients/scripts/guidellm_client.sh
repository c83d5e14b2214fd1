cat > prompts.jsonl <<'JSON'
{"prompt": "What is the capital of France?"}
{"prompt": "What is the capital of Spain?"}
JSON
# setup
measure() {
    guidellm run --backend "kind=openai_http,target=${OPENAI_BASE_URL%/v1},model=demo,api_key=$OPENAI_API_KEY,$1" \
        --data kind=json_file,path=prompts.jsonl --profile kind=synchronous --constraint kind=max_requests,count=2
}
measure request_format=/v1/chat/completions
# end of setup
# Nothing failed, and the tokens are those that the service tells.
check() {
    python - <<'PY'
import json

(benchmark,) = json.load(open("benchmarks.json"))["benchmarks"]
totals = benchmark["metrics"]["request_totals"]
assert (totals["successful"], totals["errored"]) == (2, 0), totals
assert benchmark["metrics"]["output_token_count"]["successful"]["mean"] >= 1
PY
}
check
echo "passed: chat"
rm benchmarks.json
measure request_format=/v1/completions
check
echo "passed: completions"
rm benchmarks.json
measure request_format=/v1/responses
check
echo "passed: responses"
