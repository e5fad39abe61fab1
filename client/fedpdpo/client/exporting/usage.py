"""How each form is used, for its README.md: {folder} is where it lies, {model} the backbone."""

MODEL_USAGE = """\
    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained("{folder}", trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained("{folder}")

    fedpdpo serve --model-dir {folder}          # an OpenAI-compatible server

Where there is a `remote_model.py` in the folder, a tool that loads it has to run that. Keep it
private: it was learnt from private preferences.
"""
REWARD_USAGE = """\
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    model = AutoModelForSequenceClassification.from_pretrained("{folder}", trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained("{folder}")
    model.score(tokenizer, "How was the film?", [" A delight.", " A bore."])

A prompt is text, or a list of chat messages. Keep the folder private: it was learnt from private
preferences.
"""
PEFT_USAGE = """\
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{model}"), "{folder}")

PEFT may warn that the output layer is tied to the embeddings: the adapter is of the output alone.
Keep it private: it was learnt from private preferences.
"""
MERGED_USAGE = """\
    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained("{folder}")
    tokenizer = AutoTokenizer.from_pretrained("{folder}")

    fedpdpo serve --model-dir {folder}          # an OpenAI-compatible server

These are plain weights, which any tool takes that takes the backbone's family; where the backbone
tied its output layer to its embeddings, the two may differ here. Keep the folder private: it was
learnt from private preferences.
"""
GGUF_USAGE = """\
    llama-cli --model {folder}/model.gguf
    echo "FROM ./model.gguf" > {folder}/Modelfile
    ollama create personal --file {folder}/Modelfile

What else builds on llama.cpp takes the file too, and `llama-quantize` makes one of f32 or f16
smaller. Keep it private: it was learnt from private preferences.
"""
