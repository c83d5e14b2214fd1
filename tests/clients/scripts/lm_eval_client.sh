mkdir tasks
cat > capitals.jsonl <<'JSON'
{"country": "France", "capital": "Paris", "choices": ["Paris", "London"], "answer": 0}
{"country": "Germany", "capital": "Berlin", "choices": ["Madrid", "Berlin"], "answer": 1}
JSON
cat > tasks/capitals.yaml <<'YAML'
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
cat > tasks/choices.yaml <<'YAML'
task: choices
dataset_path: json
dataset_kwargs: {data_files: {test: capitals.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "The capital of {{country}} is"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
YAML
# The tokenizer of `demo` is in the file of its weights.
python - "$MODEL_FILE" tokenizer <<'PY'
import sys

from gguf import GGUFReader
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

fields = GGUFReader(sys.argv[1]).fields
tokens, merges, first, last = (
    fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges", "bos_token_id", "eos_token_id")
)
model = models.BPE({token: id_ for id_, token in enumerate(tokens)}, [tuple(pair.split(" ")) for pair in merges])
tokenizer = Tokenizer(model)
tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)
tokenizer.decoder = decoders.ByteLevel()
made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=tokens[first], eos_token=tokens[last])
made.save_pretrained(sys.argv[2])
PY
# setup
# It reads OPENAI_API_KEY.
lm-eval run --model local-chat-completions --apply_chat_template --include_path tasks --tasks capitals \
    --model_args "model=demo,base_url=$OPENAI_BASE_URL/chat/completions,num_concurrent=2" | tee generated
# `tokenizer` is the model's own: a name at Hugging Face, or a folder. Requests go as texts, and need no tokenizer here.
lm-eval run --model local-completions --include_path tasks --tasks choices \
    --model_args "model=demo,base_url=$OPENAI_BASE_URL/completions,tokenizer=tokenizer,tokenizer_backend=huggingface,tokenized_requests=False" | tee chosen
# end of setup
grep -E 'exact_match.*\b1(\.0+)?\b' generated
echo "passed: generate"
grep -E 'acc .*\b1(\.0+)?\b' chosen
echo "passed: loglikelihood"
