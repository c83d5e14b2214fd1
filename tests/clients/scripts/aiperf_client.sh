# Any tokenizer will do, for the service counts; this one of bytes needs no download.
python - <<'PY'
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
tokenizer = Tokenizer(models.BPE({each: number for number, each in enumerate(alphabet)}, []))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained("tokenizer")
PY
# setup
measure() {
    aiperf profile --url "$OPENAI_BASE_URL" --api-key "$OPENAI_API_KEY" --model "$1" --endpoint-type "$2" \
        --tokenizer ./tokenizer --use-server-token-count \
        --synthetic-input-tokens-mean 50 --output-tokens-mean 10 --request-count 4 --concurrency 2 --ui none "${@:3}"
}
measure demo chat --streaming
# end of setup
# Nothing failed, and a stream tells when its first token came.
check() {
    python - "$@" <<'PY'
import glob
import json
import sys

(path,) = glob.glob("artifacts/**/profile_export_aiperf.json", recursive=True)
found = json.load(open(path))
assert found["request_count"]["avg"] == 4 and not found.get("error_summary"), found.get("error_summary")
assert all(name in found for name in sys.argv[1:]), list(found)
PY
    rm -r artifacts
}
check time_to_first_token inter_token_latency
echo "passed: chat"
measure demo completions --streaming
check time_to_first_token
echo "passed: completions"
measure minilm embeddings
check request_latency
echo "passed: embeddings"
