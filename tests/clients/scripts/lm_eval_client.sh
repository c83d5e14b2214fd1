cat > capitals.jsonl <<'JSON'
{"country": "France", "capital": "Paris"}
JSON
cat > capitals.yaml <<'YAML'
task: capitals
dataset_path: json
dataset_kwargs: {data_files: {test: capitals.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "What is the capital of {{country}}?"
doc_to_target: "The capital of {{country}} is {{capital}}."
generation_kwargs: {until: ["\n\n"], max_gen_toks: 30}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
YAML
# setup
# It reads OPENAI_API_KEY.
lm-eval run --model local-chat-completions --apply_chat_template --include_path . --tasks capitals \
    --model_args "model=demo,base_url=$OPENAI_BASE_URL/chat/completions,num_concurrent=2" | tee printed
# end of setup
grep -E 'exact_match.*\b1(\.0+)?\b' printed
echo "passed: generate"
