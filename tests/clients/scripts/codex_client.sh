# setup
mkdir -p ~/.codex
cat > ~/.codex/config.toml <<TOML
model = "chat"
model_provider = "tickets"
[model_providers.tickets]
name = "tickets"
base_url = "$OPENAI_BASE_URL"
env_key = "OPENAI_API_KEY"
TOML
# end of setup
# What makes the model `chat` answer so.
says() { printf '[[sim:emit64=%s]]' "$(printf %s "$1" | base64 -w0)"; }
turn() { codex exec --skip-git-repo-check --sandbox danger-full-access "$1"; }

turn "Hello. $(says 'Hello from the model.')" | tee answer
test "$(tail -n 1 answer)" = "Hello from the model."
echo "passed: turn"

# What the command prints is the model's next answer.
command="echo '$(says 'The file is written.')' | tee written"
call="{\"name\": \"exec_command\", \"arguments\": {\"cmd\": \"$command\"}}"
turn "Write a file. $(says "<tool_call>$call</tool_call>")" | tee answer
test "$(tail -n 1 answer)" = "The file is written."
grep -q sim written
echo "passed: tool call"

codex exec resume --last --skip-git-repo-check "Thanks. $(says 'You are welcome.')" | tee answer
test "$(tail -n 1 answer)" = "You are welcome."
echo "passed: resumed"
