# setup
export ANTHROPIC_BASE_URL="${OPENAI_BASE_URL%/v1}" ANTHROPIC_AUTH_TOKEN="$OPENAI_API_KEY"
export ANTHROPIC_MODEL=chat ANTHROPIC_SMALL_FAST_MODEL=chat CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1
# end of setup
# What makes the model `chat` answer so.
says() { printf '[[sim:emit64=%s]]' "$(printf %s "$1" | base64 -w0)"; }

claude -p "Hello. $(says 'Hello from the model.')" | tee answer
grep -qx "Hello from the model." answer
echo "passed: turn"

# What the command prints is the model's next answer.
command="echo '$(says 'The file is written.')' | tee written"
call="{\"name\": \"Bash\", \"arguments\": {\"command\": \"$command\", \"description\": \"Write a file\"}}"
claude -p "Write a file. $(says "<tool_call>$call</tool_call>")" --allowedTools Bash | tee answer
grep -qx "The file is written." answer
grep -q sim written
echo "passed: tool call"

claude -p --continue "Thanks. $(says 'You are welcome.')" | tee answer
grep -qx "You are welcome." answer
echo "passed: resumed"
