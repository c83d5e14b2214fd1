# setup
llm keys set tickets --value "$OPENAI_API_KEY"
cat > "$(dirname "$(llm logs path)")/extra-openai-models.yaml" <<YAML
- model_id: tickets
  model_name: demo
  api_base: "$OPENAI_BASE_URL"
  api_key_name: tickets
  supports_schema: true
YAML
# end of setup
grep -q tickets <(llm models)
echo "passed: models"
llm -m tickets --no-stream -o temperature 0 'What is the capital of France?' | grep Paris
echo "passed: chat"
llm -m tickets -o temperature 0 'What is the capital of France?' | grep Paris
echo "passed: stream"
llm -m tickets --schema 'name, age int' 'Invent a dog.' | python -c 'import json, sys; json.load(sys.stdin)["age"] + 0'
echo "passed: structured output"
