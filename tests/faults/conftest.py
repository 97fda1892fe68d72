from report_fixtures import finish_run, make_epochs, make_summary, write_record

__all__ = ["finish_run", "make_epochs", "make_summary", "write_record"]
