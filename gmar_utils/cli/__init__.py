"""The command line: gmar explain | evaluate | finetune | info."""
