"""A hand-made STOP: three manifests of the authors' nine columns, and 16 kHz wav files.

As in the download, the manifests write the folder of a file with the number of its part ("alarm_train_0") and the disk has it without.
"""

from pathlib import Path

import soundfile

from corpus_samples.sound import babble

COLUMNS = (
    *("file_id", "domain", "gender", "native", "utterance", "seqlogical", "normalized_utterance"),
    *("normalized_seqlogical", "decoupled_normalized_seqlogical"),
)

# domain, utterance, parse with all words, parse with the words of slots only
ROWS = {
    "train": [
        (
            "alarm",
            "set an alarm for eight am",
            "[IN:CREATE_ALARM set an alarm [SL:DATE_TIME for eight am ] ]",
            "[IN:CREATE_ALARM [SL:DATE_TIME for eight am ] ]",
        ),
        (
            "alarm",
            "wake me up tomorrow at six thirty",
            "[IN:CREATE_ALARM wake me up [SL:DATE_TIME tomorrow at six thirty ] ]",
            "[IN:CREATE_ALARM [SL:DATE_TIME tomorrow at six thirty ] ]",
        ),
        (
            "alarm",
            "delete the alarm called gym",
            "[IN:DELETE_ALARM delete the [SL:ALARM_NAME [IN:GET_ALARM_NAME alarm called [SL:NAME gym ] ] ] ]",
            "[IN:DELETE_ALARM [SL:ALARM_NAME [IN:GET_ALARM_NAME [SL:NAME gym ] ] ] ]",
        ),
        (
            "weather",
            "is it going to rain in boston on sunday",
            "[IN:GET_WEATHER is it going to [SL:WEATHER_ATTRIBUTE rain ] in [SL:LOCATION boston ]"
            " [SL:DATE_TIME on sunday ] ]",
            "[IN:GET_WEATHER [SL:WEATHER_ATTRIBUTE rain ] [SL:LOCATION boston ] [SL:DATE_TIME on sunday ] ]",
        ),
        (
            "weather",
            "how cold is it in oslo",
            "[IN:GET_WEATHER how [SL:WEATHER_ATTRIBUTE cold ] is it in [SL:LOCATION oslo ] ]",
            "[IN:GET_WEATHER [SL:WEATHER_ATTRIBUTE cold ] [SL:LOCATION oslo ] ]",
        ),
        (
            "weather",
            "will it snow tonight",
            "[IN:GET_WEATHER will it [SL:WEATHER_ATTRIBUTE snow ] [SL:DATE_TIME tonight ] ]",
            "[IN:GET_WEATHER [SL:WEATHER_ATTRIBUTE snow ] [SL:DATE_TIME tonight ] ]",
        ),
        (
            "timer",
            "start a timer for ten minutes",
            "[IN:CREATE_TIMER start a [SL:METHOD_TIMER timer ] [SL:DATE_TIME for ten minutes ] ]",
            "[IN:CREATE_TIMER [SL:METHOD_TIMER timer ] [SL:DATE_TIME for ten minutes ] ]",
        ),
        (
            "timer",
            "pause the stopwatch",
            "[IN:PAUSE_TIMER pause the [SL:METHOD_TIMER stopwatch ] ]",
            "[IN:PAUSE_TIMER [SL:METHOD_TIMER stopwatch ] ]",
        ),
        (
            "timer",
            "add five minutes to my timer",
            "[IN:ADD_TIME_TIMER add [SL:DATE_TIME five minutes ] to my [SL:METHOD_TIMER timer ] ]",
            "[IN:ADD_TIME_TIMER [SL:DATE_TIME five minutes ] [SL:METHOD_TIMER timer ] ]",
        ),
        (
            "reminder",
            "remind me to call mom's doctor at noon",
            "[IN:CREATE_REMINDER remind [SL:PERSON_REMINDED me ] to [SL:TODO [IN:CREATE_CALL call"
            " [SL:CONTACT mom 's doctor ] ] ] [SL:DATE_TIME at noon ] ]",
            "[IN:CREATE_REMINDER [SL:PERSON_REMINDED me ] [SL:TODO [IN:CREATE_CALL"
            " [SL:CONTACT mom 's doctor ] ] ] [SL:DATE_TIME at noon ] ]",
        ),
        (
            "reminder",
            "remind us to buy milk",
            "[IN:CREATE_REMINDER remind [SL:PERSON_REMINDED us ] to [SL:TODO buy milk ] ]",
            "[IN:CREATE_REMINDER [SL:PERSON_REMINDED us ] [SL:TODO buy milk ] ]",
        ),
        ("alarm", "show me all my alarms", "[IN:GET_ALARM show me all my alarms ]", "[IN:GET_ALARM ]"),
    ],
    "eval": [
        (
            "alarm",
            "set an alarm for noon",
            "[IN:CREATE_ALARM set an alarm [SL:DATE_TIME for noon ] ]",
            "[IN:CREATE_ALARM [SL:DATE_TIME for noon ] ]",
        ),
        (
            "weather",
            "is it hot in cairo",
            "[IN:GET_WEATHER is it [SL:WEATHER_ATTRIBUTE hot ] in [SL:LOCATION cairo ] ]",
            "[IN:GET_WEATHER [SL:WEATHER_ATTRIBUTE hot ] [SL:LOCATION cairo ] ]",
        ),
        (
            "timer",
            "stop the timer",
            "[IN:PAUSE_TIMER stop the [SL:METHOD_TIMER timer ] ]",
            "[IN:PAUSE_TIMER [SL:METHOD_TIMER timer ] ]",
        ),
        (
            "reminder",
            "remind me to water the plants",
            "[IN:CREATE_REMINDER remind [SL:PERSON_REMINDED me ] to [SL:TODO water the plants ] ]",
            "[IN:CREATE_REMINDER [SL:PERSON_REMINDED me ] [SL:TODO water the plants ] ]",
        ),
    ],
    "test": [
        (
            "alarm",
            "set an alarm for nine pm",
            "[IN:CREATE_ALARM set an alarm [SL:DATE_TIME for nine pm ] ]",
            "[IN:CREATE_ALARM [SL:DATE_TIME for nine pm ] ]",
        ),
        (
            "weather",
            "will it rain in boston tonight",
            "[IN:GET_WEATHER will it [SL:WEATHER_ATTRIBUTE rain ] in [SL:LOCATION boston ] [SL:DATE_TIME tonight ] ]",
            "[IN:GET_WEATHER [SL:WEATHER_ATTRIBUTE rain ] [SL:LOCATION boston ] [SL:DATE_TIME tonight ] ]",
        ),
        (
            "timer",
            "start a timer for six minutes",
            "[IN:CREATE_TIMER start a [SL:METHOD_TIMER timer ] [SL:DATE_TIME for six minutes ] ]",
            "[IN:CREATE_TIMER [SL:METHOD_TIMER timer ] [SL:DATE_TIME for six minutes ] ]",
        ),
        (
            "reminder",
            "remind us to feed the cat",
            "[IN:CREATE_REMINDER remind [SL:PERSON_REMINDED us ] to [SL:TODO feed the cat ] ]",
            "[IN:CREATE_REMINDER [SL:PERSON_REMINDED us ] [SL:TODO feed the cat ] ]",
        ),
    ],
}


def write(root: Path) -> None:
    """The corpus below `root`: manifests/, train_0/, eval_0/, test_0/."""
    (root / "manifests").mkdir(parents=True)
    seed = 0
    for split, rows in ROWS.items():
        lines = ["\t".join(COLUMNS)]
        for number, (domain, utterance, parse, decoupled) in enumerate(rows):
            seed += 1
            sound = root / f"{split}_0" / f"{domain}_{split}" / f"{number:08d}.wav"
            sound.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(sound, babble(100 + seed, seconds=1 + 0.05 * seed), 16_000, subtype="PCM_16")
            file_id = f"{split}_0/{domain}_{split}_0/{sound.name}"
            lines.append(
                "\t".join(
                    (file_id, domain, "female", "yes", utterance.capitalize(), parse, utterance, parse, decoupled)
                )
            )
        (root / "manifests" / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
