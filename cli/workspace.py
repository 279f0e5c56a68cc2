"""Commands on a workspace as a whole: `init`, `status`, `doctor`, its commits, exports, and `completion`."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from vlltr_index.cli.context import Context, pass_context
from vlltr_index.cli.options import DIR, FILE, PATH, at_option, read_prior, set_option, yes_option
from vlltr_index.cli.render import report_lines, status_rows, workspace_line
from vlltr_index.cli.terminal import broken, confirm, terminal_width
from vlltr_index.errors import UsageError
from vlltr_index.wording import plural


@click.command("init")
@click.argument("directory")
@click.option(
    "--encoder",
    metavar="MODEL[:PRETRAINED|:FILE]",
    help="An open_clip model and its weights; vlltr-photo, for photographs without a download; or timm:FOLDER for an"
    " image tower alone.",
)
@click.option("--recipe", metavar="NAME", help="A recipe, such as glyphs_lt/ours; default: ours.")
@click.option(
    "--prompts",
    metavar="clip|FILE",
    help="What every class's prompts are made from: the 80 templates that CLIP was evaluated with (without a text tower"
    " the name alone), or a file with"
    " one a line, {} for the class; default: the recipe's.",
)
@set_option
@pass_context
def init_command(
    context: Context,
    directory: str,
    encoder: str | None,
    recipe: str | None,
    prompts: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Make a workspace in DIRECTORY: a folder, or an address in object storage, such as s3://bucket/birds.

    Without weights (`--encoder ViT-B-16`) the encoder starts from scratch; with a tag (`ViT-B-16:openai`) or a file
    (`ViT-B-16-quickgelu:weights.pt`) from those weights. `timm:FOLDER` or `timm:OWNER/NAME@COMMIT` is an image tower of
    timm without a text tower: texts count by their words, and there is no stage 1.
    """
    from vlltr_index.pipelines.init import encoder_note, init

    for what, given in (("DIRECTORY", directory), ("--encoder", encoder)):
        if given == "":  # as of an unset variable
            raise click.UsageError(f"{what} is empty")
    workspace = init(directory, encoder, recipe, prompts=prompts, overrides=overrides)
    context.show({"workspace": workspace.address, "recipe": workspace.recipe.name}, ())
    following = "ingest text PATH, then ingest images PATH --split train"
    if workspace.history.last().id:
        following = "status"
    note = encoder_note(workspace)
    if note is not None:
        context.say(note)
    context.say(workspace_line(workspace), f"Next: vlltr -w {shlex.quote(directory)} {following}")


@click.command("status")
@pass_context
def status_command(context: Context) -> None:
    """Show what the workspace holds, what is stale, and the next command."""
    from vlltr_index.pipelines.status import status

    report = status(context.open())
    rows = status_rows(report)
    width = terminal_width()
    lines = (line for name, value in rows for line in broken(f"{name:<22} ", value, width))
    context.show(report, lines, always=True)


@click.command("doctor")
@click.option("--unlock", is_flag=True, help="Clear the lock that a killed writer left in object storage.")
@pass_context
def doctor_command(context: Context, unlock: bool) -> None:
    """Look at versions, the device and the workspace; exit code 1 where something must be mended."""
    from vlltr_index.pipelines.doctor import diagnose

    if unlock:
        holder = context.open().storage.unlock()
        context.say(f"Cleared the lock of {holder}." if holder else "There is no lock to clear.")
        return
    checks = diagnose(context.workspace)
    problems = sum(check.state == "problem" for check in checks)
    lines = []
    for check in checks:
        if check.state == "problem" or not context.quiet:
            lines.append(f"{check.state:<8} {check.name:<18} {check.value}")
            lines += [f"{'':<27} {check.mend}"] if check.mend else []
    context.show({"ok": not problems, "checks": checks}, lines, always=True)
    context.say(f"{plural(problems, 'problem')} found." if problems else "Everything is in order.")
    if problems:
        raise click.exceptions.Exit(1)


@click.command("history")
@pass_context
def history_command(context: Context) -> None:
    """List the workspace's commits, newest first."""
    commits, wrong = context.open().history.look()
    lines = (f"{commit.id:>5}  {commit.created_at}  {commit.command}" for commit in commits[::-1])
    context.show(commits[::-1], lines, always=True)
    for error in wrong:
        raise error


@click.command("rollback")
@click.argument("commit", type=click.IntRange(1), metavar="ID")
@yes_option
@pass_context
def rollback_command(context: Context, commit: int, yes: bool) -> None:
    """Go back to the state of commit ID, in a new commit: nothing is lost."""
    from vlltr_index.pipelines.history import rollback, undone

    workspace = context.open()
    lost = [f"vlltr {command}" for command in undone(workspace, commit)]
    lost += [error.message for error in workspace.history.look()[1]]
    if lost and not yes:
        confirm(*(f"  {what}" for what in lost), f"Go back to commit {commit}, without these?")
    context.show(rollback(workspace, commit))


@click.command("diff")
@click.argument("before", type=click.IntRange(1), metavar="ID")
@click.argument("after", type=click.IntRange(1), metavar="ID")
@pass_context
def diff_command(context: Context, before: int, after: int) -> None:
    """Show what differs between two commits: names of classes, and numbers of sentences, images and anchors."""
    from vlltr_index.pipelines.history import diff

    context.show(diff(context.open(), before, after), always=True)


@click.command("prune")
@click.option("--keep", required=True, type=click.IntRange(1), help="How many of the newest commits stay.")
@yes_option
@pass_context
def prune_command(context: Context, keep: int, yes: bool) -> None:
    """Give up old commits, and remove the files that only they needed.

    The commits that stay answer as before. This cannot be taken back.
    """
    from vlltr_index.pipelines.history import prune

    old = plural(len(context.open().history.ids()[:-keep]), "commit")
    if not yes:
        confirm(f"Give up the oldest {old}? This cannot be taken back.")
    context.run(prune, keep)


@click.command("export")
@click.argument("folder", metavar="DIR", type=DIR)
@at_option
@click.option("--force", is_flag=True, help="Replace an export that is there; anything else is left alone.")
@click.option("--index", "with_index", is_flag=True, help="Put the FAISS index in, where there is one.")
@click.option("--tables", is_flag=True, help="Write tables for `datasets`, pandas and others, not a model.")
@click.option("--onnx", is_flag=True, help="Write a graph for onnxruntime, which answers without torch.")
@click.option("--float16", is_flag=True, help="With --onnx: write the image tower in float16, too.")
@click.option(
    "--prior",
    default="balanced",
    metavar="PRIOR|FILE",
    help="With --onnx: how common the classes are: balanced, training, or a file with the columns class and weight.",
)
@click.option("--embed-images", is_flag=True, help="With --tables: put the bytes of image files in.")
@click.option("--push", metavar="USER/NAME", help="Make it this model on the Hugging Face hub, too.")
@click.option("--private", is_flag=True, help="With --push: let a new repository be private.")
@pass_context
def export_command(
    context: Context,
    folder: Path,
    at: int | None,
    force: bool,
    with_index: bool,
    tables: bool,
    onnx: bool,
    float16: bool,
    prior: str,
    embed_images: bool,
    push: str | None,
    private: bool,
) -> None:
    """Write DIR, which `Recognizer.from_pretrained` reads without the workspace: encoder, head, anchors, model card.

    With --tables: classes, sentences, images and anchors as Parquet files. With --onnx: a graph from resized pixels to
    probabilities, labels, and examples in Python and JavaScript. DIR appears whole or not at all.
    """
    from vlltr_index.pipelines.export import export_and_push
    from vlltr_index.recognition.exported.onnx_folder import export_onnx
    from vlltr_index.recognition.exported.writing import export_model, export_tables

    if embed_images and not tables:
        raise UsageError("--embed-images is for --tables: a model has no images", "Leave it out.")
    if tables and (with_index or push):
        raise UsageError(
            f"{'--index' if with_index else '--push'} is for a model, not for --tables",
            "To put tables on the hub: hf upload user/name DIR --repo-type dataset",
        )
    if onnx and (tables or with_index or push):
        other = "--tables" if tables else "--index" if with_index else "--push"
        raise UsageError(f"--onnx and {other} do not go together", "Write another folder for each.")
    if not onnx and (float16 or prior != "balanced"):
        raise UsageError(f"{'--float16' if float16 else '--prior'} is for --onnx", "Add: --onnx")
    if private and push is None:
        raise UsageError("--private is for --push", "Add: --push user/name")
    workspace = context.open()
    url = None
    if tables:
        report = export_tables(
            workspace, folder, at, force=force, embed_images=embed_images, progress=context.progress
        )
    elif onnx:
        how: dict[str, Any] = {"force": force, "float16": float16, "prior": read_prior(prior)}
        report = export_onnx(workspace, folder, at, **how, progress=context.progress)
    elif push is None:
        report = export_model(workspace, folder, at, force=force, with_index=with_index)
    else:
        report, url = export_and_push(
            workspace,
            folder,
            push,
            at=at,
            force=force,
            with_index=with_index,
            private=private or None,
        )
    pushed = [f"Pushed: {url}"] if url else []
    context.show({**asdict(report), "url": url}, [*report_lines(report), *pushed])


@click.group("import")
def import_command() -> None:
    """Bring in what other programs have trained."""


@import_command.command("release")
@click.argument("path", metavar="CHECKPOINT", type=PATH)
@click.option(
    "--names",
    "label_names",
    type=FILE,
    help="Stage 2: class names in the order of the benchmark's labels, such as labels.txt or categories.json.",
)
@click.option("--anchors", is_flag=True, help="Stage 2: keep the anchor vectors, which have no sentences.")
@pass_context
def release(context: Context, /, **how: Any) -> None:
    """Make CHECKPOINT of the VL-LTR release the workspace's encoder (stage 1) or image tower and head (stage 2).

    Nothing in the file is executed. Stage 2 takes the text tower of the workspace's encoder, so stage 1 comes first.
    The release keeps its sentences in pickled files, which are not read: `vlltr embed` and `vlltr select` choose the
    anchors anew, unless --anchors keeps the checkpoint's vectors.
    """
    from vlltr_index.pipelines.import_release import import_release

    context.show(import_release(context.open(), **how))


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(context: click.Context, shell: str) -> None:
    """Print the script that completes commands and options with Tab in SHELL.

    \b
    bash:  eval "$(vlltr completion bash)"    in ~/.bashrc
    zsh:   eval "$(vlltr completion zsh)"     in ~/.zshrc
    fish:  vlltr completion fish > ~/.config/fish/completions/vlltr.fish
    """
    from click.shell_completion import shell_complete

    group = context.find_root().command
    shell_complete(group, {}, "vlltr", "_VLLTR_COMPLETE", instruction=f"{shell}_source")
