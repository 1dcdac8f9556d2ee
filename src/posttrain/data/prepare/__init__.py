"""`posttrain data prepare` and `overlap`: files of rows, split and decontaminated."""
