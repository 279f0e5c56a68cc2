"""The list of commands, and the group that imports a command's file only when the command is used."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

import click

from vlltr_index.cli.options import global_options
from vlltr_index.errors import MissingStepError


class Entry(NamedTuple):
    """Where a command is.

    Attributes:
        file: The file of `cli/` that has it.
        summary: What `vlltr --help` says of it.
        calls: The functions of the library that it calls, one for each of its subcommands or ways.
    """

    file: str
    summary: str
    calls: tuple[str, ...]


COMMANDS: dict[str, Entry] = {  # in the order of a first session
    "quickstart": Entry(
        "fit",
        "Run the whole method on the data set that ships with the package.",
        ("pipelines.quickstart.quickstart",),
    ),
    "fit": Entry(
        "fit",
        "Make a model of a folder of pictures: all of the commands below in one.",
        ("pipelines.fit.fit",),
    ),
    "init": Entry("workspace", "Make a workspace.", ("pipelines.init.init",)),
    "ingest": Entry(
        "ingest",
        "Bring in images and text.",
        (
            "pipelines.ingest.ingest_images",
            "pipelines.ingest.ingest_text",
            "pipelines.taxonomy.ingest_classes",
            "pipelines.wikipedia.ingest_wikipedia",
        ),
    ),
    "import": Entry(
        "workspace",
        "Bring in checkpoints of the VL-LTR release.",
        ("pipelines.import_release.import_release",),
    ),
    "train": Entry(
        "train",
        "Train the encoder (cvlp), the head (lgr), both (all), or a baseline.",
        (
            "pipelines.train_cvlp.train_cvlp_stage",
            "pipelines.train_lgr.train_lgr_stage",
            "pipelines.train_all.train_all",
            "pipelines.train_baseline.train_baseline_stage",
            "pipelines.train_baseline.train_baseline",
        ),
    ),
    "embed": Entry(
        "train", "Embed sentences and images with the workspace's encoder.", ("pipelines.embed.embed",)
    ),
    "select": Entry("train", "Select each class's anchor sentences (AnSS).", ("anchors.selection.select",)),
    "index": Entry(
        "train",
        "Build the FAISS index over the anchors.",
        (
            "pipelines.build_index.index_anchors",
            "pipelines.build_index.plan_for",
            "anchors.planning.plan_index",
        ),
    ),
    "predict": Entry(
        "predict",
        "Recognise images and name the sentences behind each answer.",
        (
            "pipelines.predict.predict",
            "pipelines.predict.predict_to_file",
            "pipelines.asked.find_situations",
        ),
    ),
    "explain": Entry(
        "predict", "Show why an image is, or is not, of a class.", ("recognizer.Recognizer.explain",)
    ),
    "evaluate": Entry(
        "evaluate",
        "Measure accuracy: overall, many, medium, few.",
        ("pipelines.evaluate.evaluate",),
    ),
    "report": Entry(
        "evaluate",
        "Write one HTML file: accuracy, gains, confusions, explained predictions.",
        ("pipelines.report.write_report",),
    ),
    "review": Entry(
        "review",
        "List pictures in the order in which looking at them pays.",
        ("pipelines.review.queue.review", "pipelines.review.folder.review_folder"),
    ),
    "classes": Entry(
        "classes",
        "List, show, add, remove, rename and merge classes, without retraining.",
        (
            "pipelines.classlist.list_classes",
            "pipelines.classlist.show_class",
            "classes.add_classes",
            "classes.remove_classes",
            "classes.rename_class",
            "classes.merge_classes",
        ),
    ),
    "sentences": Entry(
        "classes",
        "Give a class more sentences, or take some away.",
        ("classes.add_sentences", "classes.remove_sentences"),
    ),
    "images": Entry(
        "classes",
        "Give a class more training images, take some away, or take corrections back.",
        ("classes.add_images", "classes.remove_images", "classes.relabel_images"),
    ),
    "refit": Entry(
        "train",
        "Train the head again over all classes that have images by now.",
        ("pipelines.train_lgr.refit",),
    ),
    "export": Entry(
        "workspace",
        "Write a folder to share: the model, a graph for onnxruntime, or the tables.",
        (
            "recognition.exported.writing.export_model",
            "pipelines.export.export_and_push",
            "recognition.exported.writing.export_tables",
            "recognition.exported.onnx_folder.export_onnx",
        ),
    ),
    "search": Entry(
        "search",
        "Find images by a text, and sentences by an image or a text.",
        ("pipelines.search.find_images", "recognition.search.search_sentences"),
    ),
    "ui": Entry(
        "ui.server",
        "Serve a page to recognise pictures, take answers apart, and add classes.",
        ("cli.ui.server.serve",),
    ),
    "serve": Entry(
        "serve.server",
        "Answer other programs over HTTP, with the newest commit.",
        ("cli.serve.server.serve",),
    ),
    "status": Entry(
        "workspace", "Show what exists, what is stale, and the next command.", ("pipelines.status.status",)
    ),
    "doctor": Entry(
        "workspace",
        "Look whether versions, device and workspace are in order.",
        ("pipelines.doctor.diagnose",),
    ),
    "history": Entry("workspace", "List the workspace's commits.", ("store.snapshot.History.look",)),
    "rollback": Entry(
        "workspace", "Go back to an earlier commit, in a new one.", ("pipelines.history.rollback",)
    ),
    "diff": Entry("workspace", "Show what differs between two commits.", ("pipelines.history.diff",)),
    "prune": Entry(
        "workspace", "Give up old commits and the files that only they needed.", ("pipelines.history.prune",)
    ),
    "completion": Entry("workspace", "Print the script that completes commands with Tab.", ()),
}
"""The commands by their names."""


def _accept_global_options(command: click.Command) -> None:
    """Let a command, and those below it, take the options of `vlltr` behind their names, too."""
    if isinstance(command, click.Group):
        for below in command.commands.values():
            _accept_global_options(below)
        return
    taken = {name for parameter in command.params for name in parameter.opts}
    for option in global_options():
        if not taken.intersection(option.opts):
            command.params.append(option)


class LazyGroup(click.Group):
    """A group that imports a command's module only when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List all commands, in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module that defines `cmd_name`."""
        if cmd_name in COMMANDS:
            module = import_module(f"vlltr_index.cli.{COMMANDS[cmd_name].file}")
            command: click.Command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
            _accept_global_options(command)
            return command
        if ctx.resilient_parsing:
            return None
        raise click.NoSuchCommand(cmd_name, possibilities=COMMANDS, ctx=ctx)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; if a step is missing, add to the error the step that comes first of all."""
        try:
            return super().invoke(ctx)
        except MissingStepError as error:
            hint = error.hint or ""
            found = ctx.obj.status() if hint.startswith("Run: vlltr ") else None
            if found is None or not found.stale or found.next in hint:
                raise
            raise MissingStepError(error.message, f"{hint}   (before that: {found.next})") from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from their stored summaries: `--help` imports no command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])
