"""The families and the published models: tables of strings, which import nothing."""

from __future__ import annotations

from typing import NamedTuple

# family -> module with `load(name, checkpoint, part, **options) -> (encoder | None, decoder |
# None)`, `recognises(checkpoint) -> bool` and `published_spec(variant) -> StreamSpec`. Families
# without weights get no checkpoint.
FAMILIES = {
    "nano": "streamenc.models.nano",
    "mel": "streamenc.models.mel",
    "mimi": "streamenc.models.mimi",
    "qwen3_tts_tokenizer_12hz": "streamenc.models.codecs.qwen3tts",
    "moss-audio-tokenizer": "streamenc.models.codecs.moss",
    "vibevoice_acoustic_tokenizer": "streamenc.models.codecs.vibevoice",
    "xcodec": "streamenc.models.xcodec.xcodec",
    "higgs_audio_v2_tokenizer": "streamenc.models.xcodec.xcodec",
    "encodec": "streamenc.models.encodec.encodec",
    "dac": "streamenc.models.dac.dac",
    "snac": "streamenc.models.dac.snac",
    "cosmos": "streamenc.models.cosmos.cosmos",
    "wan": "streamenc.models.wan.wan",
    "ltx": "streamenc.models.ltx",
    "whisper": "streamenc.models.whisper.whisper",
    "wav2vec2": "streamenc.models.wav2vec2.wav2vec2",
    "hubert": "streamenc.models.wav2vec2.wav2vec2",
    "wavlm": "streamenc.models.wav2vec2.wav2vec2",
    "beats": "streamenc.models.salmonn.beats",
    "salmonn": "streamenc.models.salmonn.salmonn",
    "vit": "streamenc.models.images.vit.vit",
    "dinov2": "streamenc.models.images.vit.vit",
    "dinov2_with_registers": "streamenc.models.images.vit.vit",
    "dinov3_vit": "streamenc.models.images.vit.dinov3",
    "clip": "streamenc.models.images.vit.clip",
    "clip_vision_model": "streamenc.models.images.vit.clip",
    "siglip": "streamenc.models.images.vit.clip",
    "siglip_vision_model": "streamenc.models.images.vit.clip",
    "siglip2": "streamenc.models.images.vit.clip",
    "siglip2_vision_model": "streamenc.models.images.vit.clip",
    "video_llava": "streamenc.models.images.vit.videollava",
    "resnet": "streamenc.models.images.resnet",
    "vqgan": "streamenc.models.images.vqgan",
    "vae": "streamenc.models.images.vae",
    "taesd": "streamenc.models.images.taesd",
    "dcae": "streamenc.models.images.dcae",
    "moonshine_streaming": "streamenc.models.asr.moonshine",
    "voxtral_realtime": "streamenc.models.asr.voxtral",
    "qwen3_asr": "streamenc.models.asr.qwenaudio",
    "qwen3_omni_moe": "streamenc.models.asr.qwenaudio",
    "nemotron_asr_streaming": "streamenc.models.asr.fastconformer",
    "bert": "streamenc.models.text.bert",
    "roberta": "streamenc.models.text.bert",
    "xlm-roberta": "streamenc.models.text.bert",
    "t5": "streamenc.models.text.t5",
}
WITHOUT_WEIGHTS = {"mel"}
# Models whose weights come with streamenc, each in the folder weights/NAME.
BUNDLED = {"nano"}


class Listed(NamedTuple):
    """A published model.

    Attributes:
        variant: Which of the family's it is, as the family's `published_spec` takes it.
        caption: One line for the table of models.
    """

    family: str
    variant: str
    caption: str


# What `streamenc models` lists; any other Hub name, folder or file of a known family loads as well.
LISTED = {
    "nano": Listed(
        "nano", "", "nano, small speech codec, 50 frames a second; its weights come with streamenc"
    ),
    "mel": Listed("mel", "", "log-mel spectrogram, generic preset (24 kHz, 80 bands, 10 ms)"),
    "mel:whisper": Listed(
        "mel", "whisper", "log-mel spectrogram on Whisper's grid (16 kHz, 80 bands, 10 ms)"
    ),
    "mel:whisper-128": Listed(
        "mel", "whisper-128", "the same with the 128 bands of Whisper large-v3"
    ),
    "kyutai/mimi": Listed("mimi", "", "Mimi, speech codec of 12.5 frames a second"),
    "Qwen/Qwen3-TTS-Tokenizer-12Hz": Listed(
        "qwen3_tts_tokenizer_12hz", "", "the codec of Qwen3-TTS: Mimi's encoder, another decoder"
    ),
    "OpenMOSS-Team/MOSS-Audio-Tokenizer": Listed(
        "moss-audio-tokenizer", "", "MOSS, sound of all kinds, transformers alone; also -v2, -Nano"
    ),
    "bezzam/VibeVoice-AcousticTokenizer": Listed(
        "vibevoice_acoustic_tokenizer", "", "VibeVoice's, speech to 7.5 latents a second, and back"
    ),
    "facebook/encodec_24khz": Listed(
        "encodec", "24khz", "EnCodec 24 kHz, general audio, 75 frames a second"
    ),
    "facebook/encodec_48khz": Listed(
        "encodec", "48khz", "EnCodec 48 kHz, stereo music, segments of a second"
    ),
    "bosonai/higgs-audio-v2-tokenizer": Listed(
        "higgs_audio_v2_tokenizer",
        "higgs",
        "Higgs audio v2's tokenizer, 24 kHz, 25 frames a second",
    ),
    "hf-audio/xcodec-hubert-librispeech": Listed(
        "xcodec", "hubert", "X-Codec, speech with its meaning to codes, 50 frames a second"
    ),
    "hf-audio/xcodec-hubert-general": Listed("xcodec", "hubert", "the same, general audio"),
    "hf-audio/xcodec-hubert-general-balanced": Listed(
        "xcodec", "hubert", "the same, more balanced"
    ),
    "hf-audio/xcodec-wavlm-mls": Listed("xcodec", "wavlm", "the same, on WavLM, eight languages"),
    "hf-audio/xcodec-wavlm-more-data": Listed("xcodec", "wavlm", "the same, more speech"),
    "descript/dac_16khz": Listed("dac", "16khz", "DAC 16 kHz, speech, 50 frames a second"),
    "descript/dac_24khz": Listed("dac", "24khz", "DAC 24 kHz, general audio, 75 frames a second"),
    "descript/dac_44khz": Listed("dac", "44khz", "DAC 44.1 kHz, music, 86 frames a second"),
    "hubertsiuzdak/snac_24khz": Listed(
        "snac", "24khz", "SNAC 24 kHz, speech, codebooks of 12, 23 and 47 codes a second"
    ),
    "hubertsiuzdak/snac_32khz": Listed("snac", "32khz", "SNAC 32 kHz, music, of 10 to 83 a second"),
    "hubertsiuzdak/snac_44khz": Listed(
        "snac", "44khz", "SNAC 44.1 kHz, music, of 14 to 115 a second"
    ),
    "nvidia/Cosmos-0.1-Tokenizer-CV4x8x8": Listed(
        "cosmos", "CV4x8x8", "Cosmos, video to latents: 4 frames, 8 x 8 pixels"
    ),
    "nvidia/Cosmos-0.1-Tokenizer-CV8x8x8": Listed("cosmos", "CV8x8x8", "the same, 8 frames each"),
    "nvidia/Cosmos-0.1-Tokenizer-CV8x16x16": Listed(
        "cosmos", "CV8x16x16", "the same, 8 frames, 16 x 16 pixels"
    ),
    "nvidia/Cosmos-0.1-Tokenizer-DV4x8x8": Listed(
        "cosmos", "DV4x8x8", "Cosmos, video to codes: 4 frames, 8 x 8 pixels"
    ),
    "nvidia/Cosmos-0.1-Tokenizer-DV8x8x8": Listed("cosmos", "DV8x8x8", "the same, 8 frames each"),
    "nvidia/Cosmos-0.1-Tokenizer-DV8x16x16": Listed(
        "cosmos", "DV8x16x16", "the same, 8 frames, 16 x 16 pixels"
    ),
    "nvidia/Cosmos-0.1-Tokenizer-CI8x8": Listed("cosmos", "CI8x8", "Cosmos, images to latents"),
    "nvidia/Cosmos-0.1-Tokenizer-CI16x16": Listed("cosmos", "CI16x16", "the same, 16 x 16 pixels"),
    "nvidia/Cosmos-0.1-Tokenizer-DI8x8": Listed("cosmos", "DI8x8", "Cosmos, images to codes"),
    "nvidia/Cosmos-0.1-Tokenizer-DI16x16": Listed("cosmos", "DI16x16", "the same, 16 x 16 pixels"),
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers/vae": Listed(
        "wan", "2.1", "Wan 2.1's VAE, video to latents: 4 frames, 8 x 8 pixels; also Qwen-Image's"
    ),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers/vae": Listed(
        "wan", "2.2", "Wan 2.2's VAE, the same with 16 x 16 pixels"
    ),
    "Lightricks/LTX-Video/vae": Listed(
        "ltx", "0.9", "LTX-Video's encoder, video to latents: 8 frames, 32 x 32 pixels"
    ),
    "Lightricks/LTX-Video-0.9.5/vae": Listed("ltx", "0.9.5", "the same of version 0.9.5 and later"),
    "Lightricks/LTX-2/vae": Listed("ltx", "2", "the same of LTX-2"),
    "openai/whisper-tiny": Listed(
        "whisper", "tiny", "Whisper's encoder, speech, 50 states a second; also -base to -large-v2"
    ),
    "openai/whisper-large-v3": Listed(
        "whisper", "large-v3", "the same with 128 log-mel bands; also its turbo"
    ),
    "facebook/hubert-base-ls960": Listed(
        "hubert", "hubert-base", "HuBERT, features of speech for units, 50 frames a second"
    ),
    "facebook/hubert-large-ll60k": Listed("hubert", "hubert-large", "the same, large"),
    "facebook/wav2vec2-base": Listed(
        "wav2vec2", "wav2vec2-base", "wav2vec 2.0, features of speech, 50 frames a second"
    ),
    "facebook/wav2vec2-large-lv60": Listed("wav2vec2", "wav2vec2-large", "the same, large"),
    "UsefulSensors/moonshine-streaming-tiny": Listed(
        "moonshine_streaming", "tiny", "Moonshine streaming's encoder, speech, 50 states a second"
    ),
    "UsefulSensors/moonshine-streaming-small": Listed(
        "moonshine_streaming", "small", "the same, wider, with 10 layers"
    ),
    "UsefulSensors/moonshine-streaming-medium": Listed(
        "moonshine_streaming", "medium", "the same, wider, with 14 layers"
    ),
    "mistralai/Voxtral-Mini-4B-Realtime-2602": Listed(
        "voxtral_realtime", "", "Voxtral Realtime's encoder, speech, 50 states a second"
    ),
    "Qwen/Qwen3-ASR-0.6B": Listed(
        "qwen3_asr", "0.6B", "Qwen3-ASR's encoder, speech, 13 states a second, in segments of 8 s"
    ),
    "Qwen/Qwen3-ASR-1.7B": Listed("qwen3_asr", "1.7B", "the same, wider, with 24 layers"),
    "Qwen/Qwen3-Omni-30B-A3B-Instruct": Listed(
        "qwen3_omni_moe", "omni", "Qwen3-Omni's audio encoder, the same with 32 layers"
    ),
    "nvidia/nemotron-speech-streaming-en-0.6b": Listed(
        "nemotron_asr_streaming", "0.6b", "cache-aware FastConformer, speech, 12.5 states a second"
    ),
    "microsoft/wavlm-base-plus": Listed(
        "wavlm", "wavlm-base", "WavLM, features of speech, speakers too, 50 frames a second"
    ),
    "microsoft/wavlm-large": Listed("wavlm", "wavlm-large", "the same, large"),
    "lpepino/beats_ckpts/BEATs_iter3_plus_AS2M.pt": Listed(
        "beats", "", "BEATs, features of any sound, 50 a second"
    ),
    "tsinghua-ee/SALMONN": Listed(
        "salmonn", "", "SALMONN's ears: Whisper, BEATs and a Q-Former, 88 vectors for each 30 s"
    ),
    "tsinghua-ee/SALMONN-7B": Listed("salmonn", "7b", "the same for a model of 7 B parameters"),
    "google/vit-base-patch16-224": Listed(
        "vit", "vit-base", "ViT, features of images, 224 x 224 pixels; also large, huge"
    ),
    "facebook/dinov2-small": Listed(
        "dinov2", "dinov2-small", "DINOv2, features of images, any multiples of 14 pixels"
    ),
    "facebook/dinov2-base": Listed(
        "dinov2", "dinov2-base", "the same, wider; also large, giant, with registers"
    ),
    "facebook/dinov3-vits16-pretrain-lvd1689m": Listed(
        "dinov3_vit", "small", "DINOv3, features of images, any multiples of 16 pixels"
    ),
    "facebook/dinov3-vitb16-pretrain-lvd1689m": Listed(
        "dinov3_vit", "base", "the same, wider; also large, huge, 7B"
    ),
    "openai/clip-vit-base-patch32": Listed(
        "clip", "clip-base", "CLIP, features of images that meet those of texts"
    ),
    "openai/clip-vit-large-patch14": Listed("clip", "clip-large", "the same, larger"),
    "google/siglip2-base-patch16-224": Listed(
        "siglip", "siglip2-base", "SigLIP 2, the same kind; also the first SigLIP"
    ),
    "google/siglip2-so400m-patch14-384": Listed("siglip", "siglip2-so400m", "the same, larger"),
    "google/siglip2-base-patch16-naflex": Listed(
        "siglip2", "siglip2-naflex", "the same for images of any multiples of 16 pixels"
    ),
    "LanguageBind/Video-LLaVA-7B": Listed(
        "video_llava", "original", "Video-LLaVA, what its language model reads of 8 frames"
    ),
    "LanguageBind/Video-LLaVA-7B-hf": Listed(
        "video_llava", "transformers", "the same as transformers has it, frame by frame"
    ),
    "microsoft/resnet-50": Listed("resnet", "", "ResNet, features of images; also -18 to -152"),
    "stabilityai/sd-vae-ft-mse": Listed(
        "vae", "", "VAE, images to latents of 8 x 8 pixels, and back"
    ),
    "madebyollin/taesd": Listed("taesd", "", "TAESD, a tiny VAE to the same latents"),
    "mit-han-lab/dc-ae-f32c32-in-1.0-diffusers": Listed(
        "dcae", "f32c32", "DC-AE, images to latents of 32 x 32 pixels, and back"
    ),
    "mit-han-lab/dc-ae-f64c128-in-1.0-diffusers": Listed(
        "dcae", "f64c128", "the same, 64 x 64 pixels"
    ),
    "mit-han-lab/dc-ae-f128c512-in-1.0-diffusers": Listed(
        "dcae", "f128c512", "the same, 128 x 128 pixels"
    ),
    "amused/amused-256/vqvae": Listed(
        "vqgan", "", "VQGAN, images to codes of 16 x 16 pixels, and back"
    ),
    "kandinsky-community/kandinsky-2-2-decoder/movq": Listed(
        "vqgan", "movq", "MoVQ, images to codes of 8 x 8 pixels, and back"
    ),
    "sentence-transformers/all-MiniLM-L6-v2": Listed(
        "bert", "minilm", "MiniLM, a vector of 384 numbers for each text; any BERT of sentences"
    ),
    "google-bert/bert-base-uncased": Listed(
        "bert", "bert-base", "BERT, a vector for each text; also large, RoBERTa, XLM-R"
    ),
    "ai-forever/FRIDA": Listed(
        "t5", "frida", "FRIDA, T5's encoder: vectors of Russian and English texts, by a prefix"
    ),
}
DEFAULT = "nano"
