"""Move a vector gallery to a new embedding model. Results go to stdout, progress and errors to stderr.

Exit codes: 0 done, 1 error, 2 refused or held, 74 commit state unknown, 75 fenced or another driver is at work,
130 and 143 interrupted by Ctrl-C and SIGTERM: the same command goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from fastfill_ray.errors import ConfigError
from fastfill_ray.process import guarded, outlive_readers, print_traceback
from fastfill_ray.sanitize import one_line, printable, redact

if TYPE_CHECKING:
    from fastfill_ray.config import BackfillConfig
    from fastfill_ray.log.preview import Preview
    from fastfill_ray.log.state import State
    from fastfill_ray.storage.files import Files


_Request = TypeVar("_Request")


class _Formatter(argparse.HelpFormatter):
    """Help with the defaults, where there is one that says something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text, default = action.help, action.default
        says_something = not isinstance(default, bool) and default not in (None, [], argparse.SUPPRESS)
        return f"{text} (default: %(default)s)" if text and action.option_strings and says_something else text


class _PrintVersion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        """Looked up when it is asked for: it takes longer than some commands."""
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version("fastfill_ray")
        except PackageNotFoundError:
            number = "(not installed: run from its sources)"
        print(f"fastfill-ray {number}")
        parser.exit()


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options, formatter_class=_Formatter)

    def error(self, message: str) -> NoReturn:
        """As the errors of the package: what is wrong with an argument is said without a secret that stands in it."""
        super().error(one_line(message))


def main(argv: Sequence[str] | None = None) -> int:
    """``fastfill-ray``."""
    _begin(argv)
    parser = _Parser(prog="fastfill-ray", description=__doc__)
    parser.add_argument("--version", action=_PrintVersion, nargs=0, help="print the version of the package and exit")
    commands = parser.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="run a backfill, or resume it")
    _add_run_arguments(run)
    run.set_defaults(act=_run, command_words=("fastfill-ray", "run"))

    status = _root_command(commands, "status", "what the log says; with --config also what the next start would do")
    status.add_argument("--config", help="YAML file of the run: its gallery is looked at, nothing is written")
    status.add_argument("--set", action="append", default=[], metavar="a.b=c", help="override one key; repeatable")
    status.set_defaults(act=_status)

    search = _root_command(commands, "search", "search a version with the new model's queries")
    queries = search.add_mutually_exclusive_group(required=True)
    queries.add_argument("--vectors", help=".npy file with (Q, E) query vectors of the new model")
    queries.add_argument("--text", help="one text query, embedded with the new model of --config")
    search.add_argument(
        "--old-vectors", help=".npy file with the same queries' (Q, D) old vectors; read if the version is fused"
    )
    search.add_argument("--config", help="YAML file of the run: names the models for --text, and the hits' payload")
    search.add_argument("--column", help="payload column that --text stands for, if the config has several")
    search.add_argument("-k", type=int, default=10, help="hits per query")
    search.add_argument("--version", type=int, help="version number; the published one if left out")
    search.set_defaults(act=_search)

    shadow = _root_command(
        commands, "shadow", "ask two versions the same queries: what changes for users, and how fast"
    )
    shadow.add_argument("--queries", required=True, metavar="FILE", help="Parquet: a set of queries, or a log of them")
    shadow.add_argument("--versions", required=True, type=_two_versions, metavar="3,5", help="before and after")
    shadow.add_argument("--config", help="YAML file of the run: its models embed the queries; names the hits' payload")
    shadow.add_argument("--vector-column", help="the file's column of new vectors, if they are already there")
    shadow.add_argument("--old-vector-column", help="the file's column of old vectors; read if a version is fused")
    shadow.set_defaults(act=_shadow)

    verify = _root_command(commands, "verify", "re-read the log and every segment: checksums, rows, ids exactly once")
    verify.add_argument("--version", type=int, help="only this version")
    verify.set_defaults(act=_verify)

    rollback = _root_command(commands, "rollback", "publish an earlier version; fences a driver that is running")
    rollback.add_argument("--to", type=int, required=True, help="version number")
    _add_hook_arguments(rollback)
    rollback.set_defaults(act=_rollback)

    export = _root_command(commands, "export", "write a version as Parquet files that vector stores load")
    export.add_argument("--to", required=True, metavar="FOLDER", help="a folder of its own, or an s3:// URL")
    export.add_argument("--version", type=int, help="version number; the published one if left out")
    export.add_argument(
        "--baked", action="store_true", help="write the calibration into the vectors: any store then serves it by ip"
    )
    export.add_argument(
        "--since", metavar="FOLDER", help="only what changed since the export in this folder, and the ids to delete"
    )
    export.add_argument(
        "--format",
        choices=["parquet", "faiss"],
        default="parquet",
        help="faiss: one index beside the Parquet files, too",
    )
    export.add_argument(
        "--columns", metavar="a,b", type=lambda given: tuple(given.split(",")), help="columns of the gallery, too"
    )
    export.add_argument("--config", help="YAML file of the run: says where the gallery of --columns is")
    export.set_defaults(act=_export)

    for name, about in (
        ("delete", "searches return these ids no more; may be called while a driver is running"),
        ("undelete", "undo the deletion of these ids"),
    ):
        delete = _root_command(commands, name, about)
        delete.add_argument(
            "--ids",
            required=True,
            metavar="FILE|-",
            help="text with one id per line, or Parquet; - reads standard input",
        )
        _add_hook_arguments(delete)
        delete.set_defaults(act=_delete, kind=name.upper())

    simulate = commands.add_parser("simulate", help="which map, order and calibration suit your pairs; no Ray, no run")
    pairs_help = "Parquet with id, old, new, optional label, group, split ...; or a run's folder pairs/<fp>"
    simulate.add_argument("--pairs", required=True, help=pairs_help)
    simulate.add_argument("--out", required=True, help="folder for simulation.json")
    simulate.add_argument("--objective", metavar="label/map", help="relevance/metric that everything is chosen by")
    simulate.add_argument("--queries", help="Parquet with new, optional id, old, label, group")
    simulate.add_argument("--qrels", help="Parquet with query_id, item_id, optional score or relevance")
    simulate.add_argument("--classifier", help="the new model's own, an .npz with weight (C, E) and bias (C,)")
    simulate.add_argument("--protocol", choices=["authors"], help="the published evaluation: L2, nothing chosen")
    simulate.add_argument("--metric", choices=["l2", "ip", "cosine"], default="cosine", help="how vectors are compared")
    simulate.add_argument("--preset", choices=["default", "paper"], default="default", help="size of learnt maps")
    simulate.add_argument("--seed", type=int, default=0, help="of every sample and of training")
    simulate.add_argument("--s3-endpoint", help="URL of an S3-compatible store")
    simulate.add_argument("--json", action="store_true", help="machine-readable output")
    simulate.set_defaults(act=_simulate)

    arguments = parser.parse_args(argv)
    return guarded(lambda: int(arguments.act(arguments)), last=argv is None)


def job(argv: Sequence[str] | None = None) -> int:
    """``python jobs/backfill.py``."""
    _begin(argv)
    parser = _Parser(prog="jobs/backfill.py", description="Run a backfill, or resume it.")
    _add_run_arguments(parser)
    parser.set_defaults(command_words=("python", "jobs/backfill.py"))
    parser.set_defaults(act=_run)
    arguments = parser.parse_args(argv)
    return guarded(lambda: int(arguments.act(arguments)), last=argv is None)


def _begin(argv: Sequence[str] | None) -> None:
    """argv: None in a process of our own, which ends with the command."""
    sys.excepthook = print_traceback
    if argv is None:
        outlive_readers()


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, help="YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="override one key; repeatable")
    parser.add_argument("--until", metavar="plan|version0|wave:K", help="stop after it; the same command resumes")
    parser.add_argument(
        "--allow-removals", action="store_true", help="take items out that the gallery lacks, however many they are"
    )
    parser.add_argument("--take-over", action="store_true", help="start although another driver is alive; fences it")
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def _root_command(commands: Any, name: str, about: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=about)
    parser.add_argument("root", help="output root of the backfill")
    parser.add_argument("--s3-endpoint", help="URL of an S3-compatible store")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    return parser


def _add_hook_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", help="YAML file of the run: its serving.on_publish is told at once")


def _config_of(arguments: argparse.Namespace, files: Files, overrides: Sequence[str] = ()) -> BackfillConfig | None:
    """The config, which has to be the root's; None where none is given."""
    if arguments.config is None:
        return None
    from fastfill_ray.config import load_config
    from fastfill_ray.storage.files import open_files, place_of

    config = load_config(arguments.config, overrides)
    if place_of(open_files(config.output, s3_endpoint=config.storage.s3_endpoint).root) != place_of(files.root):
        raise ConfigError(
            f"{arguments.config}: output is {config.output}, not {arguments.root}: give the root's config"
        )
    return config


def _tell(config: BackfillConfig | None, files: Files) -> None:
    """What readers see has changed: without a config the next run tells it."""
    if config is None or not config.serving.on_publish:
        return
    from fastfill_ray.stages.hook import tell
    from fastfill_ray.storage.commit_log import read_state

    tell(files, read_state(files), config.serving.on_publish, _say)


def _say(text: str) -> None:
    """A line for people, beside the results on stdout."""
    print(printable(text), file=sys.stderr, flush=True)


def _run(arguments: argparse.Namespace) -> int:
    from fastfill_ray.config import load_config
    from fastfill_ray.ordering.schedule import parse_until

    config = load_config(arguments.config, arguments.set)
    parse_until(arguments.until, config.waves)
    # It takes seconds to import: a mistake in the config is told before.
    from fastfill_ray.backfill import run_backfill
    from fastfill_ray.report.metrics_json import report_json

    with redirect_stdout(sys.stderr):  # libraries may print; stdout is for results
        result = run_backfill(
            config,
            until=arguments.until,
            take_over=arguments.take_over,
            allow_removals=arguments.allow_removals,
        )
    of_run = {"seconds": result.seconds, "overrun_rows": result.overrun_rows, "item_s": result.item_s}
    if arguments.json:
        print(json.dumps({**report_json(result.state), **of_run}))
    else:
        print(result.text(_goes_on(arguments)))
    return result.exit_code


def _goes_on(arguments: argparse.Namespace) -> str:
    """The same command without --until."""
    words = [*arguments.command_words, "--config", arguments.config]
    for override in arguments.set:
        words += ["--set", override]
    return redact(shlex.join(words))


def _status(arguments: argparse.Namespace) -> int:
    from fastfill_ray.log.preview import serving
    from fastfill_ray.report.preview import preview_lead, preview_words
    from fastfill_ray.report.status import read_status, status_json, status_text
    from fastfill_ray.stages.waves import item_seconds
    from fastfill_ray.storage.files import open_files

    files = open_files(arguments.root, s3_endpoint=arguments.s3_endpoint)
    status = read_status(files)
    plan, versions = status.state.plan, status.state.plan_versions
    item_s = None if plan is None or versions else item_seconds(files, plan, versions)
    config = _config_of(arguments, files, arguments.set)
    found = None if config is None else _preview(config, files, status.state)
    price = None if config is None else config.resources.price_per_actor_hour
    now = serving(status.state)
    if arguments.json:
        next_start = {"next": found.model_dump(mode="json"), "now": now.model_dump(mode="json")} if found else {}
        print(json.dumps({**status_json(status), **next_start}))
    else:
        first = "" if found is None else preview_lead(found)
        print("\n".join([status_text(status, item_s, first, price), *([preview_words(found, now)] if found else [])]))
    return 0


def _preview(config: BackfillConfig, files: Files, state: State) -> Preview:
    """What the next start with this config would do."""
    from fastfill_ray.stages.preview import preview
    from fastfill_ray.stages.progress import Progress

    return preview(files, config, state, Progress())


def _request(kind: type[_Request], arguments: argparse.Namespace) -> _Request:
    """A dataclass of the arguments of the same names."""
    return kind(**{each.name: getattr(arguments, each.name) for each in dataclasses.fields(kind)})  # type: ignore[arg-type]


def _search(arguments: argparse.Namespace) -> int:
    from fastfill_ray.report.hits import hits_table
    from fastfill_ray.search import SearchRequest, search

    request = _request(SearchRequest, arguments)
    with redirect_stdout(sys.stderr):  # an embedder may print; stdout is for results
        result = search(request, say=_say)
    if arguments.json:
        hits = [[hit._asdict() for hit in ranked] for ranked in result.hits]
        print(json.dumps({"version": result.version, "hits": hits}))
    else:
        width = shutil.get_terminal_size((120, 24)).columns
        print(hits_table(result.hits, result.columns, result.payload, width))
    return 0


def _two_versions(given: str) -> tuple[int, int]:
    parts = given.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{given!r}: two version numbers are expected, such as 3,5")
    return int(parts[0]), int(parts[1])


def _shadow(arguments: argparse.Namespace) -> int:
    from fastfill_ray.report.shadow import shadow_json, shadow_text
    from fastfill_ray.shadow import ShadowRequest, shadow

    request = _request(ShadowRequest, arguments)
    with redirect_stdout(sys.stderr):  # an embedder may print; stdout is for results
        comparison = shadow(request, say=_say)
    if arguments.json:
        print(json.dumps(shadow_json(comparison)))
    else:
        print(shadow_text(comparison, shutil.get_terminal_size((120, 24)).columns))
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from fastfill_ray.index.verify import verify
    from fastfill_ray.storage.files import open_files

    files = open_files(arguments.root, s3_endpoint=arguments.s3_endpoint)
    checked = verify(files, arguments.version)
    if arguments.json:
        print(
            json.dumps(
                [{"version": v.version, "segments": v.segments, "rows": v.rows, "deleted": v.deleted} for v in checked]
            )
        )
    else:
        for version in checked:
            deleted = f"; {version.deleted:,} of them were deleted when it was made" if version.deleted else ""
            ids = f"{version.rows:,} ids, each exactly once{deleted}"
            print(f"version {version.version}: {version.segments} segments, {ids}")
    return 0


def _rollback(arguments: argparse.Namespace) -> int:
    from fastfill_ray.index.verify import verify
    from fastfill_ray.log.records import ROLLBACK, Publish
    from fastfill_ray.report.write import write_report
    from fastfill_ray.storage.commit_log import Log
    from fastfill_ray.storage.files import open_files

    files = open_files(arguments.root, s3_endpoint=arguments.s3_endpoint)
    config = _config_of(arguments, files)  # before anything is recorded
    verify(files, arguments.to)  # a version that cannot be read is not put in front of users
    log = Log(files)
    before = log.read().serving
    log.claim()
    price = None if config is None else config.resources.price_per_actor_hour
    write_report(files, log.append(Publish(version=arguments.to, reason=ROLLBACK)), price)
    _tell(config, files)
    answer = {"published": arguments.to, "before": before}
    print(json.dumps(answer) if arguments.json else f"version {arguments.to} is published (before: {before})")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from fastfill_ray.export import export_text, export_version, gallery_columns, read_export
    from fastfill_ray.stages.export_manifest import ExportRequest

    since = None if arguments.since is None else read_export(arguments.since, arguments.s3_endpoint)
    columns = None if arguments.columns is None else gallery_columns(arguments.columns, arguments.config)
    request = ExportRequest(arguments.version, arguments.baked, since, columns)
    with redirect_stdout(sys.stderr):  # libraries may print; stdout is for results
        manifest = export_version(
            arguments.root,
            arguments.to,
            request,
            s3_endpoint=arguments.s3_endpoint,
            as_index=arguments.format == "faiss",
        )
    fields = {"to": arguments.to, **manifest.model_dump(mode="json", exclude={"files", "deleted", "baking"})}
    print(json.dumps(fields) if arguments.json else export_text(manifest, arguments.to))
    return 0


def _delete(arguments: argparse.Namespace) -> int:
    from fastfill_ray.inputs.locate import InputStore
    from fastfill_ray.stages.delete import delete
    from fastfill_ray.storage.files import open_files

    files = open_files(arguments.root, s3_endpoint=arguments.s3_endpoint)
    config = _config_of(arguments, files)  # before anything is recorded
    recorded = delete(files, InputStore(arguments.s3_endpoint), arguments.ids, arguments.kind)
    _tell(config, files)
    if arguments.json:
        print(json.dumps({"kind": recorded.kind, "ids": recorded.ids, "record": recorded.record}))
    elif recorded.record is None:
        print(f"No id in {printable(arguments.ids)}: nothing was recorded.")
    else:
        ids = f"{recorded.ids:,} id{'' if recorded.ids == 1 else 's'}"
        print(f"Record {recorded.record}: {recorded.kind} of {ids}, whether or not a version holds them.")
        if recorded.kind == "DELETE":
            print("Readers leave them out from their next refresh() on. Their bytes stay under the root.")
        else:
            print("Readers return them again from their next refresh() on, if the version that they open holds them.")
    return 0


def _simulate(arguments: argparse.Namespace) -> int:
    from fastfill_ray.simulation import simulate

    names = (
        "objective", "queries", "qrels", "classifier", "protocol", "metric", "preset", "out", "seed", "s3_endpoint"
    )  # fmt: skip
    simulation = simulate(arguments.pairs, **{name: getattr(arguments, name) for name in names})
    print(json.dumps(simulation.data) if arguments.json else simulation.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
