from posttrain.cli.main.main import main

main()
