import sys

from service.worker.worker import main

sys.exit(main())
