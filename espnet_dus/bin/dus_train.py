#!/usr/bin/env python3
"""Train, or collect statistics: ESPnet's training command for the DUS task."""

from espnet_dus.bin import user_errors


def get_parser():
    """Build the command's parser (ESPnet's, with the options of this task)."""
    from espnet_dus.task import DUSTask

    return DUSTask.get_parser()


@user_errors
def main(cmd=None):
    """Run the command.

    Examples:
        % python -m espnet_dus.bin.dus_train --config conf/train_dus.yaml --print_config
    """
    from espnet_dus.training.preemption import stoppable

    with stoppable():
        from espnet_dus.task import DUSTask

        DUSTask.main(cmd=cmd)


if __name__ == "__main__":
    main()
